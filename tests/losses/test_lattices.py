"""Arcs from per-site log-probs, and the score of a lattice."""

import math
import sys

import pytest
import torch

from panda_icefall.lattice import exact_recursion
from panda_icefall.losses import pruned_px_py, pruned_score, score

NEG_INF = float("-inf")
B, T, S, S_RANGE = 3, 5, 4, 3
RANGES = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 2, 2, 2], [0, 0, 0, 0, 0]]).unsqueeze(2)
RANGES = RANGES + torch.arange(S_RANGE)
BOUNDARY = torch.tensor([[0, 0, 4, 5], [0, 0, 3, 4], [0, 0, 0, 2]])


def make_logp():
    generator = torch.Generator().manual_seed(3)
    shape = (2, B, T, S_RANGE)
    target_logp, blank_logp = -torch.rand(shape, generator=generator, dtype=torch.float64) - 0.1
    return target_logp, blank_logp


def arcs_by_site(target_logp, blank_logp, boundary, rnnt_type):
    """The arcs one at a time: the oracle."""
    px = torch.full((B, S, T + (rnnt_type == "regular")), NEG_INF, dtype=torch.float64)
    py = torch.full((B, S + 1, T), NEG_INF, dtype=torch.float64)
    sites = [(b, t, r) for b in range(B) for t in range(T) for r in range(S_RANGE)]
    for b, t, r in sites:
        py[b, RANGES[b, t, r], t] = blank_logp[b, t, r]
    for b, t, r in sites:
        s = int(RANGES[b, t, r])
        is_last = rnnt_type == "regular" and boundary is not None and t == boundary[b, 3]
        if s < S and not is_last:
            follow = py[b, s + 1, t] if rnnt_type == "constrained" else 0
            px[b, s, t] = target_logp[b, t, r] + follow
    return px, py


@pytest.mark.parametrize("boundary", [None, BOUNDARY], ids=["full", "ragged"])
@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_every_arc_stands_at_its_state_and_all_others_are_closed(rnnt_type, boundary):
    target_logp, blank_logp = make_logp()
    got = pruned_px_py(target_logp, blank_logp, RANGES, S, boundary, rnnt_type)
    for arcs, expected in zip(got, arcs_by_site(target_logp, blank_logp, boundary, rnnt_type)):
        assert torch.equal(arcs, expected)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_gradients_reach_the_sites_the_arcs_came_from(rnnt_type):
    inputs = [x.requires_grad_() for x in make_logp()]

    def arcs(target_logp, blank_logp):
        px, py = pruned_px_py(target_logp, blank_logp, RANGES, S, BOUNDARY, rnnt_type)
        # gradcheck needs finite outputs; closed arcs depend on nothing.
        return px.masked_fill(px == NEG_INF, 0), py.masked_fill(py == NEG_INF, 0)

    assert torch.autograd.gradcheck(arcs, inputs)


def test_a_band_of_non_contiguous_log_probs_is_read_right():
    target_logp, blank_logp = make_logp()
    packed = torch.stack((target_logp, blank_logp), dim=-1)
    got = pruned_px_py(*packed.unbind(-1), RANGES, S, BOUNDARY, "regular")
    expected = pruned_px_py(target_logp, blank_logp, RANGES, S, BOUNDARY, "regular")
    assert all(torch.equal(x, y) for x, y in zip(got, expected))


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_sites_outside_the_boundary_have_no_influence_on_score_and_gradient(rnnt_type):
    frame = torch.arange(T).reshape(1, T, 1)
    outside = (frame >= BOUNDARY[:, 3, None, None]) | (BOUNDARY[:, 2, None, None] < RANGES)
    results = []
    for value in (None, 0.0, -1e30, 1e30):
        inputs = make_logp()
        if value is not None:
            inputs = [x.masked_fill(outside, value) for x in inputs]
        inputs = [x.requires_grad_() for x in inputs]
        px, py = pruned_px_py(*inputs, RANGES, S, BOUNDARY, rnnt_type)
        loss = score(px, py, BOUNDARY, rnnt_type, 0.0, "none")
        loss[loss.isfinite()].sum().backward()
        results.append([loss.detach(), *(x.grad for x in inputs)])
        assert all(x.grad[outside].abs().sum() == 0 for x in inputs)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0]))


@pytest.mark.parametrize(
    ("name", "shape"), [("target_logp", (B, T, 2)), ("blank_logp", (B, T + 1, S_RANGE))]
)
def test_log_probs_that_do_not_fit_the_ranges_are_refused(name, shape):
    logp = dict(zip(("target_logp", "blank_logp"), make_logp()))
    logp[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=rf"{name}: got shape .*expected that of ranges.*3, 5, 3"):
        pruned_px_py(**logp, ranges=RANGES, S=S, boundary=None, rnnt_type="regular")


def test_an_unknown_type_of_arcs_is_refused():
    with pytest.raises(ValueError, match=r"rnnt_type: got 'strict', expected one of regular, mod"):
        pruned_px_py(*make_logp(), RANGES, S, None, "strict")


# pruned_score


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.3, -1.0])
@pytest.mark.parametrize("boundary", [None, BOUNDARY], ids=["full", "ragged"])
@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_without_k2_the_band_gives_the_loss_of_the_full_lattice(
    monkeypatch, rnnt_type, boundary, delay_penalty, reduction
):
    monkeypatch.setitem(sys.modules, "k2", None)
    logp = make_logp()
    options = (boundary, rnnt_type, delay_penalty, reduction)
    px, py = pruned_px_py(*logp, RANGES, S, boundary, rnnt_type)
    expected = score(px, py, *options)
    got = pruned_score(*logp, RANGES, S, *options)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.k2
def test_with_k2_the_loss_and_its_gradients_have_the_rounding_of_k2(monkeypatch):
    target_logp, blank_logp = (logp.detach().float().requires_grad_() for logp in make_logp())
    options = (BOUNDARY, "regular", 0.3, "sum")
    px, py = pruned_px_py(target_logp, blank_logp, RANGES, S, BOUNDARY, "regular")
    expected = score(px, py, *options)
    got = pruned_score(target_logp, blank_logp, RANGES, S, *options)
    assert torch.equal(got, expected)
    inputs = (target_logp, blank_logp)
    mine, theirs = torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs)
    assert all(map(torch.equal, mine, theirs))


def test_an_unknown_reduction_of_the_band_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    with pytest.raises(ValueError, match=r"reduction: got 'max', expected one of none"):
        pruned_score(*make_logp(), RANGES, S, None, "regular", 0.0, "max")


# score


def make_lattice(rnnt_type):
    generator = torch.Generator().manual_seed(4)
    frames = T + (rnnt_type == "regular")
    px = -torch.rand(B, S, frames, generator=generator, dtype=torch.float64)
    py = -torch.rand(B, S + 1, T, generator=generator, dtype=torch.float64)
    return px, py


def test_the_reductions_are_those_of_the_negated_scores():
    px, py = make_lattice("regular")
    scores = exact_recursion(px, py, BOUNDARY)
    torch.testing.assert_close(score(px, py, BOUNDARY, "regular", 0.0, "none"), -scores)
    torch.testing.assert_close(score(px, py, BOUNDARY, "regular", 0.0, "sum"), -scores.sum())
    torch.testing.assert_close(score(px, py, BOUNDARY, "regular", 0.0, "mean"), -scores.mean())


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("boundary", [None, BOUNDARY], ids=["full", "ragged"])
def test_the_delay_penalty_favours_early_symbols(rnnt_type, boundary):
    px, py = make_lattice(rnnt_type)
    penalised = px.clone()
    for b in range(B):
        frames = T if boundary is None else int(boundary[b, 3])
        for t in range(px.shape[2]):
            penalised[b, :, t] += 0.3 * ((frames - 1) / 2 - t)
    got = score(px, py, boundary, rnnt_type, 0.3, "none")
    expected = -exact_recursion(penalised, py, boundary)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("delay_penalty", [0.0, -1.0])
def test_no_delay_penalty_leaves_the_arcs_alone(delay_penalty):
    px, py = make_lattice("regular")
    got = score(px, py, BOUNDARY, "regular", delay_penalty, "none")
    torch.testing.assert_close(got, -exact_recursion(px, py, BOUNDARY), rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_return_grad_gives_the_occupations_whatever_the_reduction(reduction):
    px, py = (x.requires_grad_() for x in make_lattice("regular"))
    loss, (px_grad, py_grad) = score(px, py, BOUNDARY, "regular", 0.25, reduction, True)
    assert torch.equal(loss, score(px, py, BOUNDARY, "regular", 0.25, reduction))
    total = score(px, py, BOUNDARY, "regular", 0.25, "sum")
    expected = torch.autograd.grad(-total, (px, py))
    torch.testing.assert_close(px_grad, expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(py_grad, expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rnnt_type": "strict"}, r"rnnt_type: got 'strict'"),
        ({"reduction": "max"}, r"reduction: got 'max', expected one of none, mean, sum"),
        ({"reduction": None}, r"reduction: got None"),
        ({"rnnt_type": "modified"}, r"px: got 6 frames for rnnt_type='modified'.*expected 5"),
    ],
)
def test_options_that_do_not_fit_the_lattice_are_refused(changed, message):
    px, py = make_lattice("regular")
    options = {"rnnt_type": "regular", "reduction": "mean"} | changed
    with pytest.raises(ValueError, match=message):
        score(px, py, None, delay_penalty=0.0, **options)


@pytest.mark.k2
@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_arcs_are_those_of_k2(rnnt_type):
    from k2.rnnt_loss import get_rnnt_logprobs_pruned

    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(B, T, S_RANGE, 7, generator=generator, dtype=torch.float64)
    symbols = torch.randint(7, (B, S), generator=generator)
    expected = get_rnnt_logprobs_pruned(logits, symbols, RANGES, 1, BOUNDARY, rnnt_type)
    logp = logits.log_softmax(-1)
    targets = torch.cat((symbols, torch.ones(B, 1, dtype=torch.int64)), 1)
    targets = targets.unsqueeze(1).expand(B, T, S + 1).gather(2, RANGES)
    target_logp = logp.gather(3, targets.unsqueeze(3)).squeeze(3)
    got = pruned_px_py(target_logp, logp[..., 1], RANGES, S, BOUNDARY, rnnt_type)
    for arcs, reference in zip(got, expected):
        torch.testing.assert_close(arcs, reference, rtol=1e-12, atol=0)


def test_a_nan_log_prob_makes_the_loss_nan():
    target_logp, blank_logp = make_logp()
    blank_logp[0] = target_logp[0] = math.nan
    px, py = pruned_px_py(target_logp, blank_logp, RANGES, S, BOUNDARY, "regular")
    loss = score(px, py, BOUNDARY, "regular", 0.0, "none")
    assert loss.isnan().tolist() == [True, False, False]
