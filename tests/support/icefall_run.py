"""Commands on a real icefall checkout, and the AISHELL zipformer small enough for two cores."""

import json
import os
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SMALL_ZIPFORMER = (
    "--world-size 1 --num-epochs 1 --enable-musan 0 --max-duration 40 --num-workers 0 "
    "--num-buckets 2 --num-encoder-layers 1,1,1,1,1,1 --feedforward-dim 64,64,64,64,64,64 "
    "--num-heads 2,2,2,2,2,2 --encoder-dim 48,48,48,48,48,48 "
    "--encoder-unmasked-dim 32,32,32,32,32,32 --decoder-dim 64 --joiner-dim 64 --use-fp16 0 "
    "--tensorboard 0"
).split()


def icefall_root():
    return Path(os.environ["ICEFALL_ROOT"]).absolute()


def run(*command, cwd):
    """What a command that must succeed wrote; the checkout is importable and stays clean."""
    paths = os.pathsep.join([str(PROJECT), str(icefall_root())])
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def logged_losses(memory_log):
    """The loss of every training step in a memory log."""
    rows = [json.loads(line) for line in memory_log.read_text().splitlines()]
    return [row["loss"] for row in rows if row.get("phase") == "compute_loss"]
