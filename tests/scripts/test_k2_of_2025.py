"""The dense losses that figures are measured against: k2's values, and no more or less than its
work. The counts are those of k2's own source of July 2025, run under the same meter."""

from collections import Counter

import pytest
import torch
from benchmarks import k2_of_2025
from benchmarks.inputs import LossInputs
from benchmarks.shapes import LossShape
from torch.utils._python_dispatch import TorchDispatchMode

from panda_icefall.losses.dense import rnnt_loss_pruned as oracle_pruned
from panda_icefall.losses.smoothed import rnnt_loss_smoothed as oracle_smoothed

SHAPE = LossShape(B=3, T=31, S=5, s_range=4, C=997, H=7, D=6, shortest=0.4)
INPUTS = LossInputs.random(SHAPE, torch.device("cpu"))
COMMON = {"symbols": INPUTS.symbols, "termination_symbol": 0, "boundary": INPUTS.boundary,
          "reduction": "sum"}  # fmt: skip
AM, LM = (SHAPE.B, SHAPE.T, SHAPE.C), (SHAPE.B, SHAPE.S + 1, SHAPE.C)
PRUNED = (SHAPE.B, SHAPE.T, SHAPE.s_range, SHAPE.C)

IS_OLD = torch.__version__.startswith("1.")
# The torch of each lane: what a backward makes differs between versions.
COUNTED = ("1.13", "2.13")
in_a_lane = pytest.mark.skipif(
    not torch.__version__.startswith(COUNTED), reason=f"counted with torch {COUNTED}"
)
# By k2's source.
LOGITS_COUNT = 11 if IS_OLD else 8
B, T, S, C = SHAPE.B, SHAPE.T, SHAPE.S, SHAPE.C
SIMPLE_COUNTS = {
    AM: 13 if IS_OLD else 11, LM: 24 if IS_OLD else 21, (B, S, C): 4, (B, C, T): 3, (B * T, C): 1,
    (1, 1, C): 8, (1, C): 1, (C,): 2,
}  # fmt: skip


class TensorsMade(TorchDispatchMode):
    """Counts the floating-point tensors of at least so many numbers that operations make."""

    def __init__(self, least):
        super().__init__()
        self.least, self.made = least, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        is_view = any(a.alias_info is not None and not a.alias_info.is_write
                      for a in func._schema.arguments)  # fmt: skip
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not is_view:
                self.made[tuple(tensor.shape)] += tensor.numel() >= self.least
        return out


def leaves(*shapes, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=g).to(dtype).requires_grad_() for s in shapes]


def smoothed(function, am, lm, scales=(0.25, 0.0)):
    names = ("lm_only_scale", "am_only_scale")
    loss, grads = function(lm=lm, am=am, **dict(zip(names, scales)), **COMMON, return_grad=True)
    return loss, grads


def pruned(function, logits):
    return function(logits=logits, ranges=INPUTS.ranges, **COMMON)


@in_a_lane
def test_the_simple_loss_makes_the_tensors_of_c_classes_that_k2_makes():
    am, lm = leaves(AM, LM)
    with TensorsMade(SHAPE.C) as meter:
        smoothed(k2_of_2025.rnnt_loss_smoothed, am, lm)[0].backward()
    # Not the recursion's, of four dimensions.
    of_classes = {shape: n for shape, n in meter.made.items() if n and len(shape) < 4}
    assert max(torch.Size(shape).numel() for shape in of_classes) == torch.Size(AM).numel()
    assert of_classes == SIMPLE_COUNTS


@in_a_lane
def test_the_pruned_loss_makes_as_many_tensors_of_the_logits_size_as_k2():
    (logits,) = leaves(PRUNED)
    with TensorsMade(logits.numel() // 2) as meter:
        pruned(k2_of_2025.rnnt_loss_pruned, logits).backward()
    assert {s: n for s, n in meter.made.items() if n} == {PRUNED: LOGITS_COUNT}


@pytest.mark.parametrize("scales", [(0.25, 0.0), (0.0, 0.0), (0.25, 0.1)])
def test_the_simple_loss_is_the_oracles(scales):
    am, lm = leaves(AM, LM, dtype=torch.float64)
    theirs, their_grads = smoothed(oracle_smoothed, am, lm, scales)
    expected = torch.autograd.grad(theirs, (am, lm))
    ours, our_grads = smoothed(k2_of_2025.rnnt_loss_smoothed, am, lm, scales)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for mine, other in zip((*our_grads, *torch.autograd.grad(ours, (am, lm))),
                           (*their_grads, *expected)):  # fmt: skip
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_the_pruned_loss_is_the_oracles():
    (logits,) = leaves(PRUNED, dtype=torch.float64)
    theirs = pruned(oracle_pruned, logits)
    ours = pruned(k2_of_2025.rnnt_loss_pruned, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    expected = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), expected, rtol=1e-9, atol=1e-13)


def test_pruning_gathers_the_states_of_the_band():
    am, lm = leaves((SHAPE.B, SHAPE.T, 9), (SHAPE.B, SHAPE.S + 1, 9))
    with TensorsMade(SHAPE.sites * 9) as meter:
        am_pruned, lm_pruned = k2_of_2025.do_rnnt_pruning(am, lm, INPUTS.ranges)
    assert sum(meter.made.values()) == 1
    assert am_pruned.data_ptr() == am.data_ptr()
    for b, t, r in ((0, 0, 0), (1, 17, 3), (2, 30, 1)):
        assert torch.equal(am_pruned[b, t, r], am[b, t])
        assert torch.equal(lm_pruned[b, t, r], lm[b, INPUTS.ranges[b, t, r]])


@pytest.mark.k2
def test_the_losses_are_those_of_the_k2_that_is_installed():
    import k2

    am, lm = leaves(AM, LM)
    theirs = smoothed(k2.rnnt_loss_smoothed, am, lm)[0]
    torch.testing.assert_close(
        smoothed(k2_of_2025.rnnt_loss_smoothed, am, lm)[0], theirs, rtol=2e-6, atol=0
    )
    (logits,) = leaves(PRUNED)
    theirs = pruned(k2.rnnt_loss_pruned, logits)
    torch.testing.assert_close(
        pruned(k2_of_2025.rnnt_loss_pruned, logits), theirs, rtol=2e-6, atol=0
    )
