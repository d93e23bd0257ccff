"""``weight=None``: the rows of a program are the logits, and exist for a tile's sites only."""

import functools

import gates
import pytest
import torch

from panda_icefall.losses.heads import HatHead
from panda_icefall.normalizer import (
    RowLogits,
    RowProgram,
    RowTable,
    Slot,
    Step,
    TileOptions,
    TilePlan,
    selected_log_probs,
)
from panda_icefall.normalizer.op import select
from panda_icefall.normalizer.plan import TileCosts

FRAMES, STATES, N, C = 11, 7, 77, 31


def problem(dtype=torch.float64, scale=1.0):
    """Compact am and lm, and the program of ``tanh(am + lm)`` at every pair of them."""
    g = torch.Generator().manual_seed(0)
    am, lm = (
        (torch.randn(n, C, generator=g, dtype=torch.float64) * scale).to(dtype).requires_grad_()
        for n in (FRAMES, STATES)
    )
    sites = torch.arange(N)
    tables = (RowTable(am, sites // STATES), RowTable(lm, sites % STATES))
    steps = (
        Step(torch.add, (Slot(0), Slot(1)), {}, C, dtype),
        Step(torch.tanh, (Slot(2),), {}, C, dtype),
        Step(torch.mul, (Slot(3), 9.0 * scale), {}, C, dtype),
    )
    ids = torch.randint(0, C, (N, 2), generator=g)
    return am, lm, RowProgram(tables, (), steps), ids


def logits_of(am, lm, scale=1.0):
    return torch.tanh(am[:, None] + lm[None]).mul(9.0 * scale).reshape(N, C)


@pytest.mark.parametrize("workspace_bytes", [4_001, 20_011, 10**7, None])
@pytest.mark.parametrize("has_dead_sites", [False, True])
def test_values_and_gradients_are_the_dense_ones(workspace_bytes, has_dead_sites):
    am, lm, program, ids = problem()
    live = torch.arange(N) % 3 != 1 if has_dead_sites else torch.ones(N, dtype=torch.bool)
    logp, log_z = selected_log_probs(
        program, None, None, ids, live=live, workspace_bytes=workspace_bytes, adjoint_tolerance=0
    )
    logits = logits_of(am, lm)
    expected_z = logits.logsumexp(1) * live
    expected = (logits.gather(1, ids) - logits.logsumexp(1)[:, None]) * live[:, None]
    torch.testing.assert_close((logp, log_z), (expected, expected_z), rtol=1e-12, atol=1e-13)
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    ours = torch.autograd.grad((logp.sum(1) * weights + log_z).sum(), (am, lm))
    truth = torch.autograd.grad((expected.sum(1) * weights + expected_z).sum(), (am, lm))
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_float32_rounds_no_worse_than_the_dense_path(scale):
    found = []
    for op in ("ours", "dense", "exact"):
        dtype = torch.float64 if op == "exact" else torch.float32
        am, lm, program, ids = problem(torch.float32, scale)
        if op == "ours":
            logp, _ = selected_log_probs(program, None, None, ids, workspace_bytes=5_000)
        else:
            logits = logits_of(am.to(dtype), lm.to(dtype), scale)
            logp = logits.log_softmax(1).gather(1, ids)
        found.append([logp.detach(), *torch.autograd.grad(logp.sum(), (am, lm))])
    for x, y, ref in zip(*found):
        error = gates.rms(x.double() - ref)
        assert error <= max(1.5 * gates.rms(y.double() - ref), 4 * 2**-23 * gates.rms(ref))


def test_rows_that_exist_are_taken_too():
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0], [3], [1], [2], [2]])
    logp, _ = selected_log_probs(logits, None, None, ids)
    torch.testing.assert_close(logp, logits.log_softmax(1).gather(1, ids))


@pytest.mark.parametrize("workspace_bytes", [4_001, None])
def test_the_hat_log_probs_are_the_dense_ones(workspace_bytes):
    am, lm, program, ids = problem()
    targets = ids[:, 0].clone()
    targets[::9] = 0
    options = TileOptions(workspace_bytes, adjoint_tolerance=0)
    log_probs = functools.partial(select, live=None, options=options, counters=None)
    ours = HatHead().of_rows(RowLogits(program), targets, 0, log_probs)[:3]
    dense = HatHead().of_logits(logits_of(am, lm), targets, 0)[:3]
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-13)
    grads = [torch.autograd.grad(x[0].sum() + 2 * x[1].sum(), (am, lm)) for x in (ours, dense)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-13)


def test_a_plan_that_does_not_split_classes_gives_whole_rows():
    costs = TileCosts(logit_bytes=4, row_bytes=64)
    plan = TilePlan.make(1000, 501, costs, 30_000, splits_classes=False)
    assert plan.class_tiles() == [(0, 501, True)]
    assert 1 < plan.tile_rows < 1000
    assert plan.tile_bytes <= 30_000
    least = costs.tile_bytes(1, 501)
    with pytest.raises(ValueError, match=rf"got {least - 1}, .*{least} .*its 501 classes"):
        TilePlan.make(1000, 501, costs, least - 1, splits_classes=False)


def test_steps_without_a_derivative_give_zero_gradients():
    rows = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    step = Step(lambda x: (x > 0).to(x.dtype), (Slot(0),), {}, 4, rows.dtype)
    ids = torch.zeros(6, 1, dtype=torch.int64)
    logp, _ = selected_log_probs(RowProgram((RowTable(rows),), (), (step,)), None, None, ids)
    (grad,) = torch.autograd.grad(logp.sum(), rows)
    assert torch.equal(grad, torch.zeros_like(rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": torch.zeros(C)}, "bias: got one without a weight, expected None"),
        ({"head_dtype": torch.bfloat16}, "head_dtype: got one without a weight"),
        ({"rows": torch.zeros(N, 0)}, "rows: got 0 columns without a weight, expected C >= 1"),
        ({"rows": torch.zeros(N)}, r"rows: got shape \(77,\), expected \[N, H\]"),
        ({"selected_ids": torch.full((N, 2), C)}, f"got class {C}, expected 0 <= id < {C}"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    *_, program, ids = problem()
    given = {"rows": program, "weight": None, "bias": None, "selected_ids": ids, **changes}
    with pytest.raises(ValueError, match=message):
        selected_log_probs(**given)
