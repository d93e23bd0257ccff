"""selected_log_probs against the dense float64 truth: structure, rounding, extremes."""

import pytest
import torch
from gates import C, H, N, in_dtype, low_precision_gate, rounding_gate, run, structure_gate, values
from oracle import dense_selected_log_probs

from panda_icefall.normalizer import TileCounters, selected_log_probs

KINDS = ("flat", "peaked", "shifted", "negative")
# Bytes: one site and one class at a time; prime-ish tiles; exactly all; far more than the problem.
WORKSPACES = (500, 3_001, 20_011, 97 * (211 + 4 * 13) * 8, 2**24)


@pytest.mark.parametrize("workspace_bytes", WORKSPACES)
@pytest.mark.parametrize("kind", KINDS)
def test_float64_equals_the_dense_expression_for_any_tile_size(kind, workspace_bytes):
    structure_gate(kind, workspace_bytes=workspace_bytes)


def test_the_small_workspaces_really_split_rows_and_classes():
    tiles = []
    for workspace_bytes in WORKSPACES:
        counters = TileCounters()
        rows, weight, bias, ids, *_ = values()
        selected_log_probs(
            rows, weight, bias, ids, workspace_bytes=workspace_bytes, counters=counters
        )
        tiles.append(counters.totals.tiles_forward)
    assert tiles[0] > tiles[1] > tiles[2] > tiles[3] == tiles[4] == 1


def test_a_single_class_has_log_prob_zero():
    structure_gate(classes=1)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_rounds_no_worse_than_the_dense_path(kind):
    rounding_gate(torch.float32, kind, workspace_bytes=30_000)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gradients_round_no_worse_than_the_dense_path(kind):
    # 640 sites in tiles of at most 5: 128 accumulations.
    rounding_gate(torch.bfloat16, kind, workspace_bytes=5 * (211 + 4 * 13) * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_log_probs_are_exact_at_the_scale_of_float32(kind):
    low_precision_gate(torch.bfloat16, kind, workspace_bytes=9_000)


def test_float16_inputs_agree_with_float64_of_the_same_values():
    low_precision_gate(torch.float16, workspace_bytes=9_000)


def test_head_dtype_rounds_operands_as_autocast_does():
    data = in_dtype(values(), torch.float32)
    half = [*in_dtype(data[:2], torch.bfloat16), *data[2:4]]  # the bias is added unrounded
    ours = run(lambda *a: selected_log_probs(*a, head_dtype=torch.bfloat16), *data)
    truth = dense_selected_log_probs(*half)
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-5, atol=1e-5)
    assert [t.dtype for t in ours] == [torch.float32] * 5


def test_gradcheck_on_a_tiny_problem():
    rows, weight, bias, ids, *_ = values(classes=7, sites=5, hidden=3)
    leaves = [t.requires_grad_() for t in (rows, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda *a: selected_log_probs(*a, ids, workspace_bytes=400, adjoint_tolerance=0), leaves
    )


def test_gradients_are_computed_only_where_wanted():
    rows, weight, bias, ids, adjoints, _ = values()
    weight.requires_grad_()
    selected_logp, _ = selected_log_probs(rows, weight, bias, ids)
    (selected_logp * adjoints).sum().backward()
    expected = weight.detach().clone().requires_grad_()
    (dense_selected_log_probs(rows, expected, bias, ids)[0] * adjoints).sum().backward()
    torch.testing.assert_close(weight.grad, expected.grad, rtol=1e-12, atol=1e-12)
    assert rows.grad is None


def test_no_bias_and_non_contiguous_inputs():
    rows, weight, _, ids, adjoints, _ = values()
    wide = torch.randn(N, 2 * H, dtype=torch.float64)
    wide[:, ::2] = rows
    leaves = [wide[:, ::2].detach().requires_grad_(), weight.t().contiguous().t().requires_grad_()]
    ours, _ = selected_log_probs(*leaves, None, ids.flip(1))
    truth, _ = dense_selected_log_probs(*leaves, None, ids.flip(1))
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    for x, y in zip(
        torch.autograd.grad((ours * adjoints).sum(), leaves),
        torch.autograd.grad((truth * adjoints).sum(), leaves),
    ):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("live_share", [0.0, 0.4, 1.0])
def test_sites_that_are_not_live_are_never_evaluated(live_share):
    rows, weight, bias, ids, adjoints, log_z_adjoints = values()
    live = torch.rand(N, generator=torch.Generator().manual_seed(1)) < live_share
    rows[~live] = float("nan")  # would spread if they were touched
    ids[~live] = 10**9
    counters = TileCounters()
    ours = run(
        lambda *a: selected_log_probs(*a, live=live, adjoint_tolerance=0, counters=counters),
        rows, weight, bias, ids, adjoints, log_z_adjoints,
    )  # fmt: skip
    truth = run(
        dense_selected_log_probs,
        rows[live], weight, bias, ids[live], adjoints[live], log_z_adjoints[live],
    )  # fmt: skip
    for x, ref in zip((*(t[live] for t in ours[:3]), *ours[3:]), truth):
        torch.testing.assert_close(x, ref, rtol=1e-11, atol=1e-11)
    assert all(t[~live].abs().sum() == 0 for t in ours[:3])
    assert (counters.totals.sites, counters.totals.sites_evaluated) == (N, int(live.sum()))


def test_masked_selections_are_zero_and_send_no_gradient():
    rows, weight, bias, ids, adjoints, log_z_adjoints = values()
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    ids = torch.where(mask, ids, torch.full_like(ids, -7))
    ours = run(
        lambda *a: selected_log_probs(*a, selected_mask=mask),
        rows, weight, bias, ids, adjoints, log_z_adjoints,
    )  # fmt: skip
    truth = run(
        dense_selected_log_probs,
        rows, weight, bias, ids.clamp(min=0), adjoints * mask, log_z_adjoints,
    )  # fmt: skip
    truth[0] = truth[0] * mask
    for x, ref in zip(ours, truth):
        torch.testing.assert_close(x, ref, rtol=1e-11, atol=1e-11)


def test_no_sites_give_empty_outputs_and_zero_gradients():
    _, weight, bias, *_ = values()
    rows = torch.zeros(0, H, dtype=torch.float64, requires_grad=True)
    weight.requires_grad_()
    selected_logp, log_z = selected_log_probs(
        rows, weight, bias, torch.zeros(0, 2, dtype=torch.long)
    )
    (selected_logp.sum() + log_z.sum()).backward()
    assert selected_logp.shape == (0, 2)
    assert log_z.shape == (0,)
    assert weight.grad.abs().sum() == 0


def test_minus_infinity_in_the_bias_removes_classes_exactly():
    rows, weight, bias, ids, *rest = values()
    bias[::2] = float("-inf")
    ids = ids // 2 * 2 + 1
    ids = ids.clamp(max=C - 2)
    for ours, ref in zip(
        run(selected_log_probs, rows, weight, bias, ids, *rest),
        run(dense_selected_log_probs, rows, weight, bias, ids, *rest),
    ):
        torch.testing.assert_close(ours, ref, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_rows_give_the_dense_non_finite_log_probs(value):
    rows, weight, bias, ids, adjoints, log_z_adjoints = values()
    rows[3, 2] = value
    ours = run(selected_log_probs, rows, weight, bias, ids, adjoints, log_z_adjoints)
    truth = run(dense_selected_log_probs, rows, weight, bias, ids, adjoints, log_z_adjoints)
    for x, ref in zip(ours[:2], truth[:2]):
        torch.testing.assert_close(x, ref, rtol=1e-11, atol=1e-11, equal_nan=True)
    assert torch.isnan(ours[3]).any()  # the trouble shows in the gradient, as in dense


def test_nan_sites_show_in_the_gradient_even_where_their_adjoint_is_zero():
    rows, weight, bias, ids, adjoints, _ = values()
    rows[3, 2] = float("nan")
    adjoints[3] = 0.0
    counters = TileCounters()
    for op in (lambda *a: selected_log_probs(*a, counters=counters), dense_selected_log_probs):
        grads = run(op, rows, weight, bias, ids, adjoints, torch.zeros(N))[2:]
        assert grads[0][3].isnan().all()
        assert grads[0][4].isfinite().all()
        assert grads[1].isnan().all()
    assert counters.totals.adjoint_mass == pytest.approx(adjoints.abs().sum().item())


def test_a_site_without_any_class_shows_in_the_gradient_as_in_dense():
    logits = torch.randn(5, 4, dtype=torch.float64)
    logits[3] = -torch.inf
    logits.requires_grad_()
    ids, adjoints = torch.ones(5, 1).long(), torch.ones(5, 1, dtype=torch.float64)
    adjoints[3] = 0
    grads = []
    for logp in (
        selected_log_probs(logits, None, None, ids)[0],
        logits.gather(1, ids) - logits.logsumexp(1, keepdim=True),
    ):
        assert logp[3].isnan().all()
        # Of a lattice that does not read the site.
        grads.append(torch.autograd.grad(logp, logits, adjoints)[0])
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14, equal_nan=True)
    assert grads[0][3].isnan().all()


def test_adjoint_tolerance_leaves_out_the_smallest_and_reports_the_mass():
    rows, weight, bias, ids, *_ = values()
    weight.requires_grad_()
    adjoints = torch.zeros(N, 3, dtype=torch.float64)
    adjoints[:10, 0] = 1.0
    adjoints[10:30, 1] = -1e-6
    exact, bounded = TileCounters(), TileCounters()
    grads = []
    for tolerance, counters in ((0.0, exact), (1e-5, bounded)):
        logp, _ = selected_log_probs(
            rows, weight, bias, ids, adjoint_tolerance=tolerance, counters=counters
        )
        grads.append(torch.autograd.grad((logp * adjoints).sum(), weight)[0])
    assert (exact.totals.sites_backward, exact.totals.adjoint_mass_skipped) == (30, 0.0)
    assert bounded.totals.sites_backward == 10
    assert bounded.totals.adjoint_mass_skipped == pytest.approx(20e-6, rel=1e-9)
    assert bounded.totals.adjoint_mass == pytest.approx(10 + 20e-6, rel=1e-9)
    # |d loss / d logits| of a site is at most twice its adjoint.
    bound = 2 * 20e-6 * rows.norm(dim=1).max()
    assert 0 < (grads[0] - grads[1]).norm() <= bound


def test_results_are_bitwise_repeatable():
    data = in_dtype(values(sites=500), torch.float32)
    first, second = (
        run(lambda *a: selected_log_probs(*a, workspace_bytes=10_000), *data) for _ in range(2)
    )
    assert all(torch.equal(x, y) for x, y in zip(first, second))


def test_second_derivatives_are_refused_not_wrong():
    rows, weight, bias, ids, *_ = values()
    weight.requires_grad_()
    loss = selected_log_probs(rows, weight, bias, ids)[0].sum()
    with pytest.raises(RuntimeError, match="create_graph: got True, expected False"):
        torch.autograd.grad(loss, weight, create_graph=True)


def bad(**changes):
    rows, weight, bias, ids, *_ = values()
    given = {"rows": rows, "weight": weight, "bias": bias, "selected_ids": ids, **changes}
    return given


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rows": torch.zeros(2, 3, 4)}, ValueError, r"rows: got shape \(2, 3, 4\), expected"),
        ({"weight": torch.zeros(5, 4)}, ValueError, r"weight: got shape \(5, 4\), expected \[C"),
        ({"weight": torch.zeros(0, H)}, ValueError, r"weight: got shape \(0, 13\)"),
        ({"weight": torch.zeros(C, H)}, TypeError, r"weight: got torch.float32 for rows of"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias: got shape \(3,\), expected \[211\]"),
        ({"bias": torch.zeros(C).int()}, TypeError, r"bias: got torch.int32, expected a floating"),
        ({"rows": torch.zeros(N, H, dtype=torch.long)}, TypeError, r"rows: got torch.int64"),
        ({"selected_ids": torch.zeros(N, 0, dtype=torch.long)}, ValueError, r"selected_ids: got"),
        ({"selected_ids": torch.zeros(N, 2)}, TypeError, r"selected_ids: got torch.float32"),
        ({"selected_ids": torch.full((N, 1), C)}, ValueError, r"got class 211, expected 0 <="),
        ({"selected_ids": torch.full((N, 1), -1)}, ValueError, r"got class -1"),
        ({"live": torch.ones(N)}, TypeError, r"live: got torch.float32"),
        ({"live": torch.ones(3).bool()}, ValueError, r"live: got shape \(3,\), expected \(97,\)"),
        ({"selected_mask": torch.ones(N, 1).bool()}, ValueError, r"selected_mask: got shape"),
        ({"adjoint_tolerance": 1.0}, ValueError, r"adjoint_tolerance: got 1.0"),
        ({"workspace_bytes": 16}, ValueError, r"workspace_bytes: got 16, expected at least"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        selected_log_probs(**bad(**changes))
