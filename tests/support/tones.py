"""The embedded recipe, small: its folder, its arguments, its scripts run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
RECIPE = REPO / "egs" / "tones" / "ASR" / "pruned_transducer"
COUNTS = {"train": 24, "dev": 6, "test": 6}
SMALL_DATA = ["--num-train=24", "--num-dev=6", "--num-test=6", "--num-words=80", "--vocab-size=60"]
SMALL_MODEL = (
    "--vocab-size=60 --num-buckets=2 --max-duration=12 --log-interval=1 --encoder-dim=32 "
    "--num-encoder-layers=1 --decoder-dim=16 --joiner-dim=24 --warm-step=4"
).split()


def run_script(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Python file or module of this repository in a process of its own, on one thread."""
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=env, capture_output=True, text=True, timeout=120
    )


def printed_losses(log: str) -> list[str]:
    """What the log says of each training batch, without times."""
    return re.findall(r"Epoch \d+, batch \d+, loss\[[^\]]*\]", log)


def small_transducer(recipe, vocab_size: int = 11):
    encoder = recipe.encoder.Encoder(encoder_dim=24, num_layers=2, kernel_size=5, dropout=0.0)
    decoder = recipe.decoder.Decoder(vocab_size, decoder_dim=8)
    joiner = recipe.joiner.Joiner(24, 8, 12, vocab_size)
    return recipe.model.Transducer(encoder, decoder, joiner, vocab_size)
