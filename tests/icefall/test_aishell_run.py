"""The unmodified AISHELL zipformer train.py, dense and routed, through the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import panda_icefall

pytestmark = [pytest.mark.k2, pytest.mark.icefall]

BATCHES = 19
SMALL = (
    "--world-size 1 --num-epochs 1 --enable-musan 0 --max-duration 40 --num-workers 0 "
    "--num-buckets 2 --num-encoder-layers 1,1,1,1,1,1 --feedforward-dim 64,64,64,64,64,64 "
    "--num-heads 2,2,2,2,2,2 --encoder-dim 48,48,48,48,48,48 "
    "--encoder-unmasked-dim 32,32,32,32,32,32 --decoder-dim 64 --joiner-dim 64 --use-fp16 0 "
    "--tensorboard 0"
).split()


def command(*arguments):
    root = os.environ["ICEFALL_ROOT"]
    project = Path(panda_icefall.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "panda_icefall", *map(str, arguments)],
        cwd=Path(root) / "egs/aishell/ASR",
        env={**os.environ, "PYTHONPATH": f"{project}:{root}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Synthetic data, and a function that runs the recipe on it."""
    folder = tmp_path_factory.mktemp("aishell")
    data = folder / "data"
    root = os.environ["ICEFALL_ROOT"]
    size = ("--utterances", 160, "--vocab", 4336, "--seed", 42)
    command("synth", "aishell", "--out", data, *size, "--icefall-root", root)

    def run(verb, name, *arguments):
        where = ["--manifest-dir", data / "fbank", "--lang-dir", data / "lang_char"]
        where += ["--exp-dir", folder / name]
        return command(verb, "zipformer/train.py", *where, *SMALL, *arguments)

    run.folder = folder
    return run


def losses(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["loss"] for row in rows if row.get("phase") == "compute_loss"]


def printed(text):
    """The loss values and gradient-norm quartiles the recipe logs, as printed."""
    found = re.findall(r"(?:loss\[[^\]]*\]|validation: [^.]*\.\d+[^.]*|quartiles [^,]*)", text)
    return [re.findall(r"\d+\.\d+(?:e[+-]\d+)?", item) for item in found]


def test_nineteen_batches_print_the_same_losses_and_gradient_norms(recipe):
    bound = ("--panda-max-batches", BATCHES)
    outputs, curves = [], []
    for name, use in (("dense", 0), ("routed", 1)):
        log = recipe.folder / f"{name}.jsonl"
        outputs.append(recipe("run", name, "--use-panda", use, "--panda-memory-log", log, *bound))
        curves.append(losses(log))
    assert len(curves[0]) == len(curves[1]) == BATCHES
    assert curves[1] == pytest.approx(curves[0], rel=5e-5)  # 4 digits
    dense, routed = (printed(text) for text in outputs)
    assert any("e+" in number for item in dense for number in item)  # quartiles were printed
    assert routed == dense
    summary = outputs[1][outputs[1].index("PANDA summary") :]
    assert re.search(r"losses routed / dense\W+26 / 0", summary)  # 19 training, 7 validation
    assert re.search(r"materialised\W+0\b", summary)


def test_the_contract_holds_for_every_parameter_group(recipe):
    output = recipe("check", "check", "--updates", 2)
    assert "The contract holds over 2 update(s)" in output
    report = json.loads((recipe.folder / "check" / "panda-check.json").read_text())
    assert report["violations"] == []
    assert not list((recipe.folder / "check").glob("*.pt"))
