"""A control run starts from parameters that are one ulp off, and from nothing else."""

import pytest
import torch
from torch import nn

from panda_icefall.runs import PandaOptions, UsageError, run_recipe, split_panda_arguments
from panda_icefall.runs.contract.dense_losses import ctc_losses_in_float64
from panda_icefall.runs.contract.training_copy import perturb_by_one_ulp


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_element_moves_by_one_ulp(dtype):
    model = nn.Linear(50, 40).to(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    perturb_by_one_ulp(model)
    eps = torch.finfo(dtype).eps
    for old, new in zip(before, model.parameters()):
        moved = ((new - old).double() / old.double()).abs()
        assert moved.min() >= eps / 2
        assert moved.max() <= 2 * eps
    ups = sum(int((n > o).sum()) for o, n in zip(before, model.parameters()))
    assert 0.4 < ups / sum(o.numel() for o in before) < 0.6


def test_every_call_changes_alike_and_leaves_the_generators_alone():
    torch.manual_seed(1)
    a, b = nn.Linear(5, 4), nn.Linear(5, 4)
    b.load_state_dict(a.state_dict())
    state = torch.get_rng_state()
    perturb_by_one_ulp(a)
    perturb_by_one_ulp(b)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.weight, b.weight)


def test_zeros_stay_and_integers_are_left():
    model = nn.Module()
    model.zero = nn.Parameter(torch.zeros(3))
    model.whole = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)
    perturb_by_one_ulp(model)
    assert model.zero.eq(0).all()
    assert model.whole.eq(1).all()


def test_ctc_losses_in_float64_are_the_same_but_for_rounding():
    torch.manual_seed(1)
    logits = (torch.randn(300, 2, 50) * 3).requires_grad_()
    numbers = torch.randint(1, 50, (2, 80)), torch.tensor([300, 250]), torch.tensor([80, 70])

    def run(dtype=torch.float32):
        log_probs = logits.log_softmax(dim=2).to(dtype)
        loss = torch.nn.functional.ctc_loss(log_probs, *numbers, reduction="sum")
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    original = torch.nn.functional.ctc_loss
    (loss, grad), (_, exact) = run(), run(torch.float64)
    with ctc_losses_in_float64():
        assert torch.nn.functional.ctc_loss is not original
        other_loss, other_grad = run()
        assert run(torch.float64)[0].dtype == torch.float64
    assert torch.nn.functional.ctc_loss is original
    assert other_loss.dtype == torch.float32
    torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
    assert torch.equal(other_grad, exact)
    assert 1e-6 < (other_grad - grad).norm() / exact.norm() < 1e-3


def test_a_twin_run_differs_by_rounding_alone(recipe):
    for folder, is_twin in (("plain", False), ("twin", True)):
        options = PandaOptions(max_batches=4, last_bit_twin=is_twin)
        words = ["--exp-dir", folder, "--num-epochs", "2", "--num-batches", "2"]
        assert run_recipe(recipe.train_py, words, options) == 0
    plain, twin = ([float(x) for x in recipe.lines(f"{f}/losses-0.txt")] for f in ("plain", "twin"))
    assert len(plain) == 4
    assert twin == pytest.approx(plain, rel=1e-4)
    ends = [torch.load(recipe.folder / f / "epoch-1.pt") for f in ("plain", "twin")]
    changed = [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])]
    assert "joiner.output_linear.weight" in changed


def test_the_change_is_made_once_however_many_epochs(recipe, monkeypatch):
    calls = []
    monkeypatch.setattr("panda_icefall.runs.hooks.perturb_by_one_ulp", calls.append)
    options = PandaOptions(last_bit_twin=True)
    assert run_recipe(recipe.train_py, ["--num-epochs", "3"], options) == 0
    assert len(calls) == 1


def test_the_option_is_a_switch_and_makes_the_run_active():
    options, _ = split_panda_arguments(["--panda-last-bit-twin", "1"])
    assert (options.last_bit_twin, options.is_active) == (True, True)
    assert not split_panda_arguments(["--panda-last-bit-twin", "0"])[0].is_active
    with pytest.raises(UsageError, match="--panda-last-bit-twin: got 'x', expected 0 or 1"):
        split_panda_arguments(["--panda-last-bit-twin", "x"])
