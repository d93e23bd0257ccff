"""Passes of one batch prune alike, and what each would have chosen by itself is counted."""

import json

import pytest
import torch

from panda_icefall import routing
from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.contract.passes import PruneRanges

B, T, S_RANGE = 2, 4, 3
BOUNDARY = torch.tensor([[0, 0, 5, 4], [0, 0, 5, 2]])


def some_ranges(first=0):
    return torch.arange(first, first + S_RANGE).expand(B, T, S_RANGE).clone()


@pytest.fixture
def chosen(monkeypatch):
    """What `get_rnnt_prune_ranges` will choose, call by call; gives the function as recipes do."""
    results = []

    def get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range):
        return results.pop(0)

    module = routing.patched_module()
    monkeypatch.setattr(module, "get_rnnt_prune_ranges", get_rnnt_prune_ranges)

    def call(boundary=BOUNDARY):
        return module.get_rnnt_prune_ranges(px_grad=0, py_grad=0, boundary=boundary, s_range=3)

    call.results, call.original, call.module = results, get_rnnt_prune_ranges, module
    return call


def test_the_dense_passes_ranges_are_handed_on_in_order_and_put_back(chosen):
    first, second = some_ranges(), some_ranges(1)
    ranges = PruneRanges()
    chosen.results += [tensor.clone() for tensor in (first, second) * 3]
    with ranges.recorded():
        given = chosen()
        chosen()
        given += 7  # the recipe's own doing
    for _ in range(2):
        with ranges.handed_on() as own:
            assert torch.equal(chosen(), first)
            assert torch.equal(chosen(), second)
        assert (own.frames, own.frames_differing, own.problems) == (12, 0, [])
    assert chosen.module.get_rnnt_prune_ranges is chosen.original


@pytest.mark.parametrize(("boundary", "frames"), [(BOUNDARY, 6), (None, 8)])
def test_frames_inside_the_boundary_that_would_differ_are_counted(chosen, boundary, frames):
    dense, other = some_ranges(), some_ranges()
    other[0, 1] += 1
    other[0, 2, 0] = 2
    other[1, 3] += 1  # outside
    ranges = PruneRanges()
    chosen.results += [dense, other]
    with ranges.recorded():
        chosen(boundary)
    with ranges.handed_on() as own:
        assert torch.equal(chosen(boundary), dense)
    assert (own.frames, own.frames_differing) == (frames, 3 if boundary is None else 2)


def test_calls_that_the_dense_pass_did_not_make_keep_their_own_and_are_said(chosen):
    ranges = PruneRanges()
    chosen.results += [some_ranges(), some_ranges(1)[:, :2], some_ranges(2)]
    with ranges.recorded():
        chosen()
    with ranges.handed_on() as own:
        assert chosen().shape == (B, 2, S_RANGE)
        assert torch.equal(chosen(), some_ranges(2))
    assert own.problems == [
        "prune ranges: the dense arm chose shape (2, 4, 3), the routed arm shape (2, 2, 3)",
        "prune ranges: the dense arm chose none, the routed arm shape (2, 4, 3)",
    ]


def test_an_error_of_the_block_comes_through_and_the_function_is_put_back(chosen):
    with pytest.raises(ZeroDivisionError), PruneRanges().recorded():
        _ = 1 / 0
    assert chosen.module.get_rnnt_prune_ranges is chosen.original


OWN_CHOICE = """ranges = k2.get_rnnt_prune_ranges(
            px_grad=1 - px_grad if type(self.simple_am_proj(am)) is not torch.Tensor
            else px_grad,"""


def test_an_arm_that_would_prune_otherwise_is_compared_at_the_dense_arms_sites(recipe, capsys):
    recipe.edit(
        ("ranges = k2.get_rnnt_prune_ranges(\n            px_grad=px_grad,", OWN_CHOICE),
        name="toy_model.py",
    )
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=2)) == 0
    content = json.loads((recipe.folder / "exp" / "panda-check.json").read_text())
    counted = [batch["prune_ranges"] for batch in content["batches"]]
    assert all(0 < found["frames_differing"] <= found["frames"] for found in counted)
    printed = capsys.readouterr().err
    assert f"{counted[0]['frames_differing']} / {counted[0]['frames']}" in printed
    assert "would have chosen other prune ranges" in " ".join(printed.split())


def test_ranges_that_cannot_be_handed_on_are_a_violation(recipe):
    again = "ranges = k2.get_rnnt_prune_ranges(px_grad, py_grad, boundary, 2)\n        "
    recipe.edit(
        (
            "ranges = k2.get_rnnt_prune_ranges(\n",
            "if type(self.simple_am_proj(am)) is not torch.Tensor:\n            "
            + again
            + "ranges = k2.get_rnnt_prune_ranges(\n",
        ),
        name="toy_model.py",
    )
    assert run_recipe(recipe.train_py, [], PandaOptions(check_batches=1)) == 1
    content = json.loads((recipe.folder / "exp" / "panda-check.json").read_text())
    assert "update 1: prune ranges: the dense arm chose" in content["violations"][0]


def test_bfloat16_training_keeps_the_contract(recipe):
    options = PandaOptions(check_batches=3)
    assert run_recipe(recipe.train_py, ["--autocast", "1"], options) == 0
    content = json.loads((recipe.folder / "exp" / "panda-check.json").read_text())
    assert [batch["simple_losses_routed"] for batch in content["batches"]] == [1, 1, 1]
