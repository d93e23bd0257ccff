"""The trained inputs that are shipped: what they stand for, and how they are made."""

import sys
from dataclasses import replace

import bench_loss
import pytest
import torch
from benchmarks import stored_inputs
from benchmarks.arms import Step
from benchmarks.inputs import LossInputs
from benchmarks.model import TransducerLoss
from benchmarks.shapes import LossShape

SHAPE = LossShape(B=3, T=21, S=6, s_range=4, C=60, H=8, D=8, shortest=0.5)
USED = torch.arange(12)


def trained_like():
    """Inputs of few used classes, the others pushed down as by a training."""
    inputs = LossInputs.random(SHAPE, torch.device("cpu"))
    inputs.symbols = inputs.symbols % 11 + 1
    state = TransducerLoss(inputs, has_simple=True).state_dict()
    for layer in stored_inputs.TO_CLASSES:
        state[f"{layer}.bias"][12:] -= 9.0
    return replace(inputs, parameters=state)


def losses(inputs):
    return {part: float(Step.make("dense", part, inputs).run()) for part in ("simple", "pruned")}


@pytest.fixture
def stored(tmp_path):
    inputs = trained_like()
    stored_inputs.store(inputs, USED, tmp_path / "inputs.npz")
    return inputs, tmp_path / "inputs.npz"


def test_the_stored_batch_has_the_losses_of_the_model(stored):
    inputs, path = stored
    loaded = stored_inputs.load(SHAPE.H, path)
    assert torch.equal(loaded.symbols, inputs.symbols)
    assert torch.equal(loaded.boundary, inputs.boundary)
    assert torch.equal(loaded.ranges, inputs.ranges)
    expected = losses(inputs)
    # What float16 rounds, and the classes that are drawn anew.
    for part, loss in losses(loaded).items():
        assert loss == pytest.approx(expected[part], rel=2e-3)


def test_the_classes_without_texts_keep_their_mean_and_covariance(stored):
    inputs, path = stored
    layer = "joiner.output_linear"
    theirs = inputs.parameters[f"{layer}.bias"][12:]
    ours = stored_inputs.load(SHAPE.H, path).parameters[f"{layer}.bias"][12:]
    assert not torch.equal(ours, theirs)
    assert abs(ours.mean() - theirs.mean()) < 3 * theirs.std() / len(theirs) ** 0.5
    assert 0.6 < ours.std() / theirs.std() < 1.6


def test_a_wider_batch_has_the_same_losses(stored):
    _, path = stored
    narrow, wide = (stored_inputs.load(H, path) for H in (SHAPE.H, 4 * SHAPE.H))
    assert (wide.shape.H, wide.shape.D) == (32, 32)
    for part, loss in losses(narrow).items():
        assert losses(wide)[part] == pytest.approx(loss, rel=1e-5)
    with pytest.raises(ValueError, match="--H: got 20, expected a multiple of 8, the trained"):
        stored_inputs.load(20, path)


def test_two_loads_are_the_same_numbers(stored):
    one, two = (stored_inputs.load(SHAPE.H, stored[1]) for _ in range(2))
    assert all(torch.equal(one.parameters[name], two.parameters[name]) for name in one.parameters)


def test_encoder_and_joiner_of_different_widths_are_refused(tmp_path):
    inputs = replace(trained_like(), shape=replace(SHAPE, D=9))
    with pytest.raises(ValueError, match="got --encoder-dim 9 and --joiner-dim 8, expected equal"):
        stored_inputs.store(inputs, USED, tmp_path / "inputs.npz")


def test_the_shipped_batch_is_small_and_has_peaked_adjoints():
    assert stored_inputs.STORED.stat().st_size < 2**20
    inputs = stored_inputs.load(64)
    shape = inputs.shape
    assert (shape.B, shape.s_range, shape.C) == (20, 5, 4336)
    assert 0.4 < shape.shortest < 0.6
    assert inputs.symbols.max() < shape.C
    # Of random inputs 60 %; 23 % where the training went on.
    assert bench_loss.carrying_share(inputs) < 0.45


def test_a_missing_checkpoint_is_said(monkeypatch, capsys):
    import make_trained_inputs

    monkeypatch.setattr(sys, "argv", ["make_trained_inputs.py", "--checkpoint", "absent.pt"])
    with pytest.raises(SystemExit):
        make_trained_inputs.main()
    assert "--checkpoint: got absent.pt, expected an epoch-N.pt" in capsys.readouterr().err


def test_other_numbers_of_classes_have_other_unused_ones(tmp_path):
    inputs = trained_like()
    used = torch.cat((torch.arange(2), torch.arange(50, 60)))  # as a tokenizer numbers them
    inputs.symbols = torch.where(inputs.symbols > 1, inputs.symbols + 48, inputs.symbols)
    stored_inputs.store(inputs, used, tmp_path / "inputs.npz")
    given = stored_inputs.load(SHAPE.H, tmp_path / "inputs.npz")
    for classes in (12, 75, 40_000):
        loaded = stored_inputs.load(SHAPE.H, tmp_path / "inputs.npz", classes)
        more = classes - SHAPE.C
        assert SHAPE.C + more == loaded.shape.C
        assert torch.equal(loaded.symbols[loaded.symbols > 1] - more,
                           given.symbols[given.symbols > 1])  # fmt: skip
        assert torch.equal(loaded.symbols > 1, given.symbols > 1)
        for layer in stored_inputs.TO_CLASSES:
            weight, before = (i.parameters[f"{layer}.weight"] for i in (loaded, given))
            assert torch.equal(weight[:2], before[:2])
            assert torch.equal(weight[-10:], before[-10:])
        assert torch.isfinite(Step.make("panda", "pruned", loaded).run())
    with pytest.raises(ValueError, match="--C: got 11, expected at least 12, the trained symbols"):
        stored_inputs.load(SHAPE.H, tmp_path / "inputs.npz", 11)


def test_a_repeated_batch_has_the_loss_that_often():
    inputs = LossInputs.random(SHAPE, torch.device("cpu"))
    thrice = inputs.repeated(3)
    assert thrice.shape.B == 9
    once = losses(inputs)
    assert losses(thrice) == pytest.approx({part: 3 * loss for part, loss in once.items()})
