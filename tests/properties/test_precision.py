"""Extreme logits, NaN and inf: what dense makes of them, or closer to float64.

Random batches of each loss in each dtype are in test_properties.py, gradient scaling in
tests/routing/test_gradient_scaling.py.
"""

import pytest
import torch
import transducer_cases as cases
from transducer_cases import KINDS, C

import panda_icefall
from panda_icefall import transducer_loss

NAN, INF = float("nan"), float("inf")


def full(joiner, inputs, **options):
    """The costs, routed."""
    before = panda_icefall.status()
    loss = transducer_loss(joiner, *inputs.values(), reduction="none", **options)
    assert (panda_icefall.status() - before).losses_routed == 1
    return loss


def joiner_of(logits, dtype):
    """A joiner whose logits are extreme, and the classes that no target may be."""
    torch.manual_seed(3)
    joiner, unreached = cases.PlacingJoiner(), []
    with torch.no_grad():
        if logits == "large":
            joiner.output.bias.copy_(1e4 * (-1.0) ** torch.arange(C))
        elif logits == "all large":
            joiner.output.bias.add_(1e4)
        elif logits == "all small":
            joiner.output.bias.sub_(1e4)
        elif logits == "steep":
            joiner.output.weight.mul_(1e4)
        elif logits == "one class":
            joiner.output.bias.copy_(200.0 * (torch.arange(C) == 6))
        elif logits == "equal":
            joiner.output.weight.zero_()
            joiner.output.bias.zero_()
        elif logits == "columns of -inf":
            unreached = [2, 4]
            joiner.output.bias[unreached] = -INF
    return joiner.to(dtype), unreached


LOGITS = ["large", "all large", "all small", "steep", "one class", "equal", "columns of -inf"]
LOSSES = ["regular", "modified", "hat", "clamp_fastemit", "multi_blank_all", "tdt_all"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_are_finite_and_as_close_as_dense(name, logits, dtype):
    options, kind = KINDS[name]
    joiner, unreached = joiner_of(logits, dtype)
    inputs = cases.batch(kind, dtype=dtype)
    for label in unreached:
        inputs["targets"][inputs["targets"] == label] = 1
    costs = full(joiner, inputs, adjoint_tolerance=0.0, workspace_mib=2**-9, **options)
    found = [costs, *cases.gradients(costs, inputs, joiner)]
    truth, truth_grads = cases.oracle(joiner, inputs, kind)
    dense_logits = joiner(inputs["am"], inputs["lm"])
    dense = cases.transducer_costs(
        dense_logits, inputs["targets"], inputs["logit_lengths"], inputs["target_lengths"], kind
    )
    twin = [dense, *cases.gradients(dense, inputs, joiner)]
    eps = torch.finfo(dtype).eps
    wide = torch.finfo(costs.dtype).eps
    largest = dense_logits.detach().double()
    largest = largest[largest.isfinite()].abs().max().item()
    for x, d, ref in zip(found, twin, [truth, *truth_grads], strict=True):
        assert torch.equal(x.isfinite(), ref.isfinite())
        error, dense_error = cases.rms(x.double() - ref), cases.rms(d.double() - ref)
        # A logit is rounded to eps of itself, and probabilities to that.
        unit = max(8 * eps, 4 * wide * largest)
        assert error <= max(1.5 * dense_error, unit * cases.rms(ref))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_not_finite_shows_in_its_utterance_and_in_no_other(name, value):
    options, kind = KINDS[name]
    torch.manual_seed(1)
    joiner, inputs = cases.PlacingJoiner().double(), cases.batch(kind)
    with torch.no_grad():
        joiner.output.weight.abs_()
        inputs["am"][0, 2, 3] = value
    # Without the tanh, which makes 1 of an inf.
    placed = lambda am, lm: joiner.output(am.unsqueeze(2) + lm.unsqueeze(1))  # noqa: E731
    costs = full(placed, inputs, **options)
    dense = cases.transducer_costs(
        placed(inputs["am"], inputs["lm"]), inputs["targets"], inputs["logit_lengths"],
        inputs["target_lengths"], kind,
    )  # fmt: skip
    assert torch.equal(costs.isnan(), dense.isnan())
    assert not costs[0].isfinite()
    torch.testing.assert_close(costs[1:], dense[1:], rtol=1e-11, atol=1e-11)
    (grad,) = torch.autograd.grad(costs.sum(), joiner.output.weight)
    assert not grad.isfinite().all()


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("where", ["weight", "bias", "am", "lm"])
def test_what_is_not_finite_beyond_an_utterance_is_not_read(where, value):
    """Padding may hold anything; a parameter reaches every utterance."""
    options, kind = KINDS["regular"]
    torch.manual_seed(1)
    joiner, inputs = cases.PlacingJoiner().double(), cases.batch(kind)
    expected = full(joiner, inputs, **options).detach()
    with torch.no_grad():
        if where == "am":
            inputs["am"][1, 6:] = value
        elif where == "lm":
            inputs["lm"][1, 1:] = value
        else:
            getattr(joiner.output, where)[5] = value
    costs = full(joiner, inputs, **options)
    grads = cases.gradients(costs, inputs, joiner)
    if where in ("am", "lm"):
        assert torch.equal(costs, expected)
        assert all(grad.isfinite().all() for grad in grads)
    else:
        assert not costs.isfinite().any()
        assert not grads[2].isfinite().all()
