"""The guard compares routed losses with dense ones as a run goes, and ends it where they differ."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from panda_icefall.normalizer import tile_loop
from panda_icefall.routing import ComputedLoss
from panda_icefall.runs import (
    MismatchError,
    PandaOptions,
    UsageError,
    run_recipe,
    split_panda_arguments,
)
from panda_icefall.runs.hooks import guard

TF32 = SimpleNamespace(allow_tf32=True)
CPU = torch.device("cpu")
GUARDED = PandaOptions(use_panda=True, verify_every=2, memory_log=Path("m.jsonl"))


def test_a_guarded_run_is_bit_for_bit_the_one_without(recipe, capsys):
    for name, options in (("plain", PandaOptions(use_panda=True)), ("guarded", GUARDED)):
        assert run_recipe(recipe.train_py, ["--exp-dir", name], options) == 0
    assert recipe.lines("plain/losses-0.txt") == recipe.lines("guarded/losses-0.txt")
    assert recipe.lines("plain/valid-0.txt") == recipe.lines("guarded/valid-0.txt")
    plain, guarded = (torch.load(recipe.folder / f / "epoch-0.pt") for f in ("plain", "guarded"))
    assert all(torch.equal(plain[name], guarded[name]) for name in plain)
    # The simple and the pruned loss of batches 1 and 3.
    summary = capsys.readouterr().err
    assert "losses compared with dense" in summary
    assert "4 of 2 batches" in summary
    assert not (recipe.folder / "m.mismatch.json").exists()


def planted_after(patch, module, name, calls, change):
    """From a call on, a function gives what ``change`` makes of its result."""
    original, count = getattr(module, name), [0]

    def planted(*args, **kwargs):
        count[0] += 1
        result = original(*args, **kwargs)
        return change(result) if count[0] > calls else result

    patch.setattr(module, name, planted)


def normaliser_shifted(patch):
    planted_after(patch, tile_loop, "forward", 4, lambda found: (found[0], found[1] + 0.01))


def wrong_gradient(patch):
    backward, count = tile_loop.backward, [0]

    def planted(*args, **kwargs):
        count[0] += 1
        backward(*args, **kwargs)
        (wanted,) = (a for a in args if isinstance(a, tile_loop.Gradients))
        for table in wanted.tables:
            table.mul_(1 + 0.1 * (count[0] > 4))

    patch.setattr(tile_loop, "backward", planted)


@pytest.mark.parametrize(
    ("bug", "quantity"), [(normaliser_shifted, "log_z"), (wrong_gradient, "gradient")]
)
def test_a_planted_bug_ends_the_run_with_its_batch_saved(recipe, monkeypatch, bug, quantity):
    bug(monkeypatch)
    with pytest.raises(MismatchError, match=f"--panda-verify-every: {quantity} of the pruned loss"):
        run_recipe(recipe.train_py, ["--num-batches", "8"], GUARDED)
    found = json.loads((recipe.folder / "m.mismatch.json").read_text())
    assert found["step"] % 2 == 1  # batches 1, 3, 5, ... are compared
    assert found["step"] > 1
    (wrong,) = (c for c in found["compared"] if c["quantity"] == quantity)
    assert not wrong["holds"]
    assert wrong["distance"] > wrong["bound"]
    assert [entry["utterance"] for entry in found["utterances"]] == wrong["utterances"]
    assert set(torch.load(found["batch"], weights_only=False)) == {"inputs", "supervisions"}
    done = recipe.lines("exp/losses-0.txt")
    assert len(done) == found["step"] - 1  # the wrong batch was not trained on


def test_the_command_says_so_with_status_1(recipe, command, monkeypatch):
    normaliser_shifted(monkeypatch)
    words = ["--use-panda", 1, "--panda-verify-every", 1]
    status, _, error = command("run", recipe.train_py, *words)
    assert status == 1
    last_line = error.splitlines()[-1]
    assert last_line.startswith("panda-icefall: --panda-verify-every: ")
    assert "train without --use-panda and send" in last_line


def test_a_child_of_spawn_ends_the_run_by_the_same_name(recipe, port):
    bug = (
        "import torch.nn as nn\n",
        "import torch.nn as nn\n"
        "from panda_icefall.normalizer import tile_loop\n"
        "plain = tile_loop.forward\n"
        "tile_loop.forward = lambda *a: tuple(x + 0.1 for x in plain(*a))\n",
    )
    recipe.edit(bug)
    words = ["--world-size", 2, "--master-port", port, "--use-panda", 1, "--panda-verify-every", 2]
    done = recipe.subprocess("run", "train.py", *words)
    assert done.returncode == 1, done.stderr
    assert "panda-icefall: --panda-verify-every: log-probs of the pruned loss" in done.stderr


def test_other_batches_are_left_alone(recipe, monkeypatch):
    seen = []

    def deviations(found, chosen):
        seen.append((type(found), len(chosen)))
        return []

    monkeypatch.setattr(guard, "compared", deviations)
    options = PandaOptions(use_panda=True, verify_every=200)
    assert run_recipe(recipe.train_py, ["--num-batches", "6"], options) == 0
    assert len(seen) == 2  # both losses of the first batch
    assert (ComputedLoss, 2) in seen


def test_what_was_not_compared_is_said_once(recipe, monkeypatch, caplog, capsys):
    monkeypatch.setattr(guard, "compared", lambda found, chosen: [])
    options = PandaOptions(use_panda=True, verify_every=2)
    assert run_recipe(recipe.train_py, ["--num-batches", "6"], options) == 0
    said = [record.message for record in caplog.records if "was not compared" in record.message]
    assert [message.split(" of training")[0].split("the ")[1] for message in said] == [
        "simple loss", "pruned loss",
    ]  # fmt: skip
    assert "0 of 3 batches" in capsys.readouterr().err


def test_it_needs_panda():
    with pytest.raises(UsageError, match=r"--panda-verify-every: got 5 without PANDA"):
        split_panda_arguments(["--panda-verify-every", "5"])
    with pytest.raises(UsageError, match="expected an integer of at least 1"):
        split_panda_arguments(["--use-panda", "1", "--panda-verify-every", "0"])


def test_the_bounds_follow_the_precision_of_matrix_products(monkeypatch):
    single = guard.bounds_on(CPU, torch.float32)
    assert single["log_z"] == pytest.approx(1e-4)
    assert single["loss"] == pytest.approx(1e-4)
    assert single["gradient"] == pytest.approx(1e-3)
    monkeypatch.setattr(torch.backends, "cuda", SimpleNamespace(matmul=TF32))
    assert guard.bounds_on(CPU, torch.bfloat16) == single
    tf32 = guard.bounds_on(torch.device("cuda"), torch.float32)
    assert all(tf32[name] >= single[name] for name in single)
    TF32.allow_tf32 = False
    assert guard.bounds_on(torch.device("cuda"), torch.float32) == single
    half = guard.bounds_on(torch.device("cuda"), torch.bfloat16)
    assert {name for name in single if half[name] > single[name]} == {"gradient"}


def test_a_loss_that_cannot_be_computed_again_is_not_compared():
    sharded = SimpleNamespace(is_whole=False)
    by_calls = SimpleNamespace(
        is_whole=True, loss=torch.zeros(()), options=SimpleNamespace(workspace_on=lambda device: 1)
    )
    assert guard.compared(sharded, [0]) == guard.compared(by_calls, [0]) == []
