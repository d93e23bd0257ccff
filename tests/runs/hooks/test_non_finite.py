"""A batch whose loss is not finite, or is refused: named and saved, and training as it would be."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.hooks import bad_batch, non_finite

CUTS = (
    ("import argparse\n", "import argparse\nfrom types import SimpleNamespace\n"),
    (
        '"supervisions": {"num_frames": lens,',
        '"supervisions": {\n'
        '                    "cut": [SimpleNamespace(id=f"cut-{i}") for i in range(B)],\n'
        '                    "num_frames": lens,',
    ),
)
COMPUTE = "    with torch.set_grad_enabled(is_training):\n        loss = losses_of("


def in_batch(number, statement):
    """An edit of the recipe: a statement ahead of the loss of one training batch."""
    ahead = f"    if is_training and params.batch_idx_train == {number}:\n        {statement}\n"
    return (COMPUTE, ahead + COMPUTE)


OPTIONS = PandaOptions(use_panda=True, memory_log=Path("log/m.jsonl"))
BROKEN = in_batch(2, "batch['inputs'][1] = float('nan')")


def report(recipe, name="log/m.non-finite.json"):
    return json.loads((recipe.folder / name).read_text())


def test_the_first_such_batch_is_described_and_saved(recipe, caplog, capsys):
    recipe.edit(*CUTS, BROKEN)
    assert run_recipe(recipe.train_py, [], OPTIONS) == 0
    found = report(recipe)
    assert (found["step"], found["batch_idx_train"], found["rank"]) == (2, 2, 0)
    first = found["findings"][0]
    assert (first["utterance"], first["cut"], first["loss"]) == (1, "cut-1", "simple loss")
    assert (first["quantity"], first["symbols"]) == ("encoder output", 2)
    assert first["frames"] == found["lengths"][1]["T"] == found["lengths"][0]["T"] - 2
    assert not first["features_are_finite"]
    assert "NaN already in the input of am's projection" in first["reason"]
    assert {f["utterance"] for f in found["findings"]} == {1}
    assert {f["loss"] for f in found["findings"]} == {"simple loss", "pruned loss"}
    assert found["parameters_not_finite"] == []
    batch = torch.load(found["batch"], weights_only=False)
    assert Path(found["batch"]).parent == recipe.folder / "exp"
    assert batch["inputs"][1].isnan().all()
    assert batch["supervisions"]["cut"][1].id == "cut-1"
    assert caplog.text.count("training batch 2: the simple loss of utterance b=1") == 1
    assert "(cut-1); details in " in caplog.text
    said = "Losses that are not finite in 3 training batch(es)"
    assert said in capsys.readouterr().err  # the parameters are NaN from batch 2 on


def test_training_does_what_the_dense_recipe_does(recipe):
    recipe.edit(*CUTS, BROKEN)
    curves = []
    for name, use in (("dense", False), ("routed", True)):
        options = PandaOptions(use_panda=use, memory_log=Path(f"{name}.jsonl"))
        assert run_recipe(recipe.train_py, ["--exp-dir", name], options) == 0
        curves.append([float(x) for x in recipe.lines(f"{name}/losses-0.txt")])
    dense, routed = curves
    assert len(dense) == len(routed) == 4
    assert routed[0] == pytest.approx(dense[0], rel=1e-5)
    assert not any(torch.tensor(routed[1:]).isfinite())
    assert not any(torch.tensor(dense[1:]).isfinite())
    assert not list(recipe.folder.glob("dense/batch-*.pt"))
    assert len(list(recipe.folder.glob("routed/batch-*.pt"))) == 1


def test_without_a_memory_log_the_report_lies_in_the_recipes_folder(recipe):
    recipe.edit(*CUTS, BROKEN)
    assert run_recipe(recipe.train_py, [], PandaOptions(use_panda=True)) == 0
    assert report(recipe, "exp/panda-non-finite.json")["step"] == 2


def test_a_loss_that_only_the_recipe_makes_infinite_is_told_from_the_routed_ones(recipe):
    assert run_recipe(recipe.train_py, ["--kind", "nan"], OPTIONS) == 0
    found = report(recipe)
    assert found["findings"] == []
    assert found["reason"].startswith("every routed loss is finite")
    assert found["numbers"]["loss"] == "nan"


def test_a_batch_that_a_loss_refuses_is_named_and_stops_as_in_dense(recipe, caplog):
    recipe.edit(*CUTS, in_batch(3, "batch['supervisions']['lens'][2] = 5"))
    with pytest.raises(ValueError, match=r"boundary: got \[0, 0, 5, .*for utterance b=2"):
        run_recipe(recipe.train_py, [], OPTIONS)
    assert (recipe.folder / "exp/bad-model-0.pt").exists()  # the recipe's own way to stop
    found = report(recipe)
    assert (found["step"], found["findings"][0]["cut"]) == (3, "cut-2")
    assert found["error"].startswith("ValueError: boundary: got [0, 0, 5, ")
    assert torch.load(found["batch"], weights_only=False)["supervisions"]["lens"][2] == 5
    assert "training batch 3: ValueError: boundary: got [0, 0, 5, " in caplog.text


def test_a_healthy_run_leaves_no_report(recipe):
    assert run_recipe(recipe.train_py, [], OPTIONS) == 0
    assert [path.name for path in (recipe.folder / "log").iterdir()] == ["m.jsonl"]
    assert not list((recipe.folder / "exp").glob("batch-*.pt"))


def test_a_full_disk_ends_no_training_and_the_log_gets_the_report(recipe, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    recipe.edit(*CUTS, BROKEN)
    monkeypatch.setattr(bad_batch, "replace_json", full)
    monkeypatch.setattr(bad_batch.torch, "save", full)
    recipe.edit(("            torch.save(state,", "            (lambda *a: None)(state,"))
    assert run_recipe(recipe.train_py, [], OPTIONS) == 0
    assert len(recipe.lines("exp/losses-0.txt")) == 4
    assert "the batch could not be saved to " in caplog.text
    assert 'could not be written ([Errno 28] No space left on device): {"time": ' in caplog.text
    assert '"cut": "cut-1"' in caplog.text
    assert not list((recipe.folder / "exp").glob(".batch-*"))


def test_on_a_device_only_what_the_recipe_has_read_itself_is_looked_at():
    # A loss on a GPU; reading it would raise here, and wait for the device there.
    there = SimpleNamespace(loss=SimpleNamespace(device=SimpleNamespace(type="cuda")))
    assert non_finite._is_finite((there.loss, {"loss": 1.5, "frames": 8}), [there])
    assert not non_finite._is_finite((there.loss, {"loss": float("inf")}), [there])
    # Nothing was read: there is no other way.
    assert not non_finite._is_finite(torch.tensor(float("nan")), [there])
    assert non_finite._is_finite((torch.zeros(()), {}), [there])


@pytest.mark.parametrize(
    ("batch", "b", "B", "expected"),
    [
        ([1, 2], 0, 2, {}),
        ({"supervisions": {"text": ["a", "b"]}}, 1, 2, {"text": "b"}),
        ({"supervisions": {"text": ["a", "b"]}}, 3, 4, {"text": "b"}),  # two copies of the batch
        ({"supervisions": {"text": ["a", "b", "c"]}}, 1, 2, {}),  # nobody knows which
        ({"supervisions": {}, "inputs": torch.ones(2, 3)}, 1, 2, {"features_are_finite": True}),
    ],
)
def test_a_batch_is_asked_for_what_it_says_of_an_utterance(batch, b, B, expected):
    assert bad_batch.utterance_of(batch, b, B) == expected
