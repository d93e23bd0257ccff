"""The unmodified AISHELL zipformer train.py, dense and routed, through the command line."""

import json
import re
import sys

import pytest
from icefall_run import SMALL_ZIPFORMER, icefall_root, logged_losses, run

from panda_icefall import __version__ as VERSION

pytestmark = [pytest.mark.k2, pytest.mark.icefall]

BATCHES = 19


def command(*words):
    return run(
        sys.executable, "-m", "panda_icefall", *words, cwd=icefall_root() / "egs/aishell/ASR"
    )


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Synthetic data, and a function that runs the recipe on it."""
    folder = tmp_path_factory.mktemp("aishell")
    data = folder / "data"
    size = ("--utterances", 160, "--vocab", 4336, "--seed", 42)
    command("synth", "aishell", "--out", data, *size, "--icefall-root", icefall_root())

    def run_recipe(verb, name, *arguments):
        where = ["--manifest-dir", data / "fbank", "--lang-dir", data / "lang_char"]
        where += ["--exp-dir", folder / name]
        return command(verb, "zipformer/train.py", *where, *SMALL_ZIPFORMER, *arguments)

    run_recipe.folder = folder
    return run_recipe


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
        curves.append(logged_losses(log))
    assert len(curves[0]) == len(curves[1]) == BATCHES
    assert curves[1] == pytest.approx(curves[0], rel=5e-5)  # 4 digits
    dense, routed = (printed(text) for text in outputs)
    assert any("e+" in number for item in dense for number in item)  # quartiles were printed
    assert routed == dense
    summary = outputs[1][outputs[1].index("PANDA summary") :]
    assert re.search(r"losses routed / dense\W+26 / 0", summary)  # 19 training, 7 validation
    assert re.search(r"simple losses recorded / on tensors / dense\W+26 / 0 / 0", summary)
    assert re.search(r"materialised\W+0\b", summary)


def test_the_contract_holds_for_every_parameter_group(recipe):
    output = recipe("check", "check", "--updates", 2)
    assert "The contract holds over 2 update(s)" in output
    report = json.loads((recipe.folder / "check" / "panda-check.json").read_text())
    assert report["violations"] == []
    assert not list((recipe.folder / "check").glob("*.pt"))


SAVED = """
import sys
from pathlib import Path
import torch
from icefall.checkpoint import save_checkpoint
from icefall.utils import AttributeDict
from panda_icefall.runs import PandaOptions
params = AttributeDict(batch_idx_train=7, exp_dir=Path("exp"))
PandaOptions(use_panda=True, workspace_mib=4.0).note_in(params)
save_checkpoint(Path(sys.argv[1]), torch.nn.Linear(2, 3), params=params)
"""
LOADED = """
import sys
sys.modules["panda_icefall"] = None
from pathlib import Path
import torch
from icefall.checkpoint import average_checkpoints, load_checkpoint
path = Path(sys.argv[1])
saved = load_checkpoint(path, torch.nn.Linear(2, 3), strict=True)
assert sorted(average_checkpoints([path, path])) == ["bias", "weight"]
print(saved["batch_idx_train"], saved["panda"])
"""


def test_icefall_loads_a_checkpoint_of_a_routed_run_where_there_is_no_panda(tmp_path):
    path = tmp_path / "epoch-1.pt"
    run(sys.executable, "-c", SAVED, path, cwd=tmp_path)
    text = run(sys.executable, "-c", LOADED, path, cwd=tmp_path)
    assert f"7 panda-icefall {VERSION}: --use-panda 1 --panda-workspace-mib 4\n" in text
