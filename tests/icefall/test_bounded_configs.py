"""The configurations under egs/ on the real recipes: every option, and each cpu form as a whole."""

import json
import sys

import pytest
from icefall_run import PROJECT, icefall_root, run

from panda_icefall.runs.bounded.config import load_config

pytestmark = [pytest.mark.k2, pytest.mark.icefall]

CONFIGS = sorted((PROJECT / "egs").glob("*/ASR/*/*.yaml"))
CPU_CONFIGS = [path for path in CONFIGS if path.stem == "cpu"]

# Stops a recipe where it has read its command line, and says what it made of it.
PARSE_ONLY = """
import argparse, json, runpy, sys

def parse_args(self, args=None, namespace=None):
    found, unknown = self.parse_known_args(args, namespace)
    print("PARSED", json.dumps([unknown, {k: str(v) for k, v in vars(found).items()}]))
    sys.exit(0)

argparse.ArgumentParser.parse_args = parse_args
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rsplit("/", 1)[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def name_of(path):
    return str(path.relative_to(PROJECT / "egs").with_suffix(""))


def test_each_recipe_folder_has_both_forms():
    forms = {}
    for path in CONFIGS:
        forms.setdefault(path.parent, set()).add(path.stem)
    assert len(forms) == 8
    assert all(found == {"cpu", "full"} for found in forms.values())


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_the_recipe_knows_every_option_and_takes_every_value(path):
    config = load_config(path)
    train_py = icefall_root() / config.recipe
    command = [sys.executable, "-c", PARSE_ONLY, train_py, *config.recipe_arguments()]
    output = run(*command, cwd=train_py.parents[1])
    unknown, found = json.loads(output.split("PARSED", 1)[1].splitlines()[0])
    assert unknown == []
    names = {name.replace("-", "_") for name in config.train_args}
    assert names <= found.keys()
    if path.stem == "cpu":
        assert found.get("prune_range", "5") == "5"  # a full lattice has none


@pytest.mark.parametrize("path", CPU_CONFIGS, ids=name_of)
def test_the_cpu_form_runs_end_to_end_and_everything_holds(path, tmp_path):
    out = tmp_path / "out"
    words = ["bounded", path, "--icefall-root", icefall_root(), "--synthetic", "--device", "cpu"]
    words += ["--max-minutes", "90"]  # what else the machine does is no fault
    run(sys.executable, "-m", "panda_icefall", *words, "--out", out, cwd=tmp_path)
    report = json.loads((out / "report.json").read_text())
    assert report["state"] == "complete"

    batches = report["contract"]["batches"]
    assert len(batches) == 3
    for batch in batches:
        assert batch["loss_rel"] <= 1e-6
        judged = [g for g in batch["gradients"] if not g["is_negligible"]]
        assert {"encoder", "decoder", "joiner"} <= {g["group"] for g in judged}
        # Rounding in the dense loss alone may do more, that of torchaudio's recursion does.
        allowed = {g["group"]: 4 * g["rel_l2"] for g in batch.get("gradients_twin", [])}
        assert all(g["rel_l2"] <= max(1e-6, allowed.get(g["group"], 0)) for g in judged)
        assert min(g["cosine"] for g in judged) >= 0.999999
        assert max(d["rel_l2"] for d in batch["log_probs"] + batch["log_z"]) <= 1e-6

    routed = report["arms"]["routed"]["counters"]
    assert routed["losses_routed"] >= 30
    assert routed["losses_dense"] == 0
    assert routed["materialised"] == {}
    assert report["arms"]["dense"]["counters"]["losses_routed"] == 0

    assert report["trajectory"]["steps"] == 30
    assert report["trajectory"]["non_finite"] == 0
    assert report["final_parameters"]["non_finite"] == []
    is_pruned = load_config(path).checkpoints == "batches"
    if is_pruned:
        assert report["resume"]["is_bitwise"] is True
    losses = {"simple_loss", "pruned_loss"} if is_pruned else {"full_loss"}
    phases = {"encoder", *losses, "backward", "optimizer"}
    for arm in ("dense", "routed"):
        for step in report["arms"][arm]["steps"]:
            assert phases <= step["phases"].keys()
    for name in (
        "report.md",
        "report.html",
        "loss.png",
        "memory.png",
        "phases.png",
        "contract.png",
    ):
        assert (out / name).stat().st_size > 1000
