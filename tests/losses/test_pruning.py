"""Prune ranges against a loop over frames and against k2; joiner inputs of the kept sites."""

import logging

import pytest
import torch

from panda_icefall.lattice import exact_recursion
from panda_icefall.losses.pruning import do_rnnt_pruning, get_rnnt_prune_ranges

# name: (is_regular, S, T, boundary rows)
LATTICES = {
    "regular": (True, 9, 12, [[0, 0, 9, 12], [0, 0, 6, 10], [0, 0, 0, 4], [0, 0, 8, 12]]),
    "modified": (False, 9, 12, [[0, 0, 9, 12], [0, 0, 7, 9], [0, 0, 0, 4], [0, 0, 2, 11]]),
    "more symbols than frames": (True, 11, 4, [[0, 0, 11, 4], [0, 0, 5, 3], [0, 0, 2, 1]]),
    "later begins": (True, 6, 9, [[2, 1, 6, 9], [0, 3, 4, 8]]),
    "one frame": (True, 3, 1, [[0, 0, 3, 1], [0, 0, 1, 1]]),
    "no symbols": (True, 0, 5, [[0, 0, 0, 5], [0, 0, 0, 2]]),
}
CASES = [(name, s_range) for name in LATTICES for s_range in (2, 3, 5, 20)] + [("modified", 1)]


def make_occupations(name, dtype=torch.float32, seed=0):
    is_regular, S, T, rows = LATTICES[name]
    generator = torch.Generator().manual_seed(seed)
    px = 4 * torch.randn(len(rows), S, T + is_regular, generator=generator)
    py = 4 * torch.randn(len(rows), S + 1, T, generator=generator)
    boundary = torch.tensor(rows)
    _, grads = exact_recursion(px.to(dtype), py.to(dtype), boundary, return_grad=True)
    return *grads, boundary


def ranges_by_frame(px_grad, py_grad, boundary, s_range):
    """Section 3.2 of the paper, a frame at a time: the oracle."""
    B, S1, T = py_grad.shape
    is_regular = px_grad.shape[2] == T + 1
    if is_regular:
        for _, _, s_end, t_end in boundary.tolist():
            while (s_range - 1) * t_end < s_end:
                s_range += 1
    s_range = min(s_range, S1)
    steepest = s_range - 1 if is_regular else 1
    first = torch.zeros(B, T, dtype=torch.int64)
    for b in range(B):
        s_end, t_end = boundary[b, 2:].tolist()
        best = []
        for t in range(T):
            kept = []
            for s in range(S1 - s_range + 1):
                entering = px_grad[b, s - 1, t] if s > 0 else 0.0
                kept.append(float(py_grad[b, s : s + s_range, t].sum() - entering))
            best.append(kept.index(max(kept)) if t < t_end - 1 else max(s_end - s_range + 1, 0))
        lowered = [min(best[t:]) for t in range(T)]
        for t in range(T):
            needed = max(lowered[u] - steepest * (u - t) for u in range(t, T))
            first[b, t] = min(needed, steepest * t)
    return first.unsqueeze(2) + torch.arange(s_range)


@pytest.mark.parametrize(("name", "s_range"), CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ranges_are_those_of_a_loop_over_frames(name, s_range, seed):
    *occupations, boundary = make_occupations(name, torch.float64, seed)
    # On a binary grid all sums are exact, or equal windows would be told apart by rounding.
    occupations = [*((x * 2**20).round() / 2**20 for x in occupations), boundary]
    got = get_rnnt_prune_ranges(*occupations, s_range)
    assert got.dtype == torch.int64
    assert torch.equal(got, ranges_by_frame(*occupations, s_range))


@pytest.mark.parametrize(("name", "s_range"), CASES)
def test_the_band_starts_at_zero_climbs_within_reach_and_ends_at_the_last_symbol(name, s_range):
    px_grad, py_grad, boundary = make_occupations(name)
    ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, s_range)
    width = ranges.shape[2]
    is_regular, S, _, _ = LATTICES[name]
    rises = ranges[:, 1:, 0] - ranges[:, :-1, 0]
    assert (ranges[:, 0, 0] == 0).all()
    assert (ranges >= 0).all()
    assert (ranges <= S).all()
    assert (rises >= 0).all()
    assert (rises <= (width - 1 if is_regular else 1)).all()
    for b, (_, _, s_end, t_end) in enumerate(boundary.tolist()):
        assert s_end in ranges[b, t_end - 1]


@pytest.mark.parametrize("name", ["regular", "more symbols than frames", "later begins"])
def test_some_path_survives_the_pruning(name):
    px_grad, py_grad, boundary = make_occupations(name)
    boundary[:, :2] = 0
    ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, 2)
    _, S, T, _ = LATTICES[name]
    py = torch.full((len(boundary), T, S + 1), float("-inf")).scatter(2, ranges, 0.0)
    px = torch.cat((py[:, :, :S], torch.full((len(boundary), 1, S), float("-inf"))), dim=1)
    px[torch.arange(len(boundary)), boundary[:, 3]] = float("-inf")
    scores = exact_recursion(px.transpose(1, 2), py.transpose(1, 2), boundary)
    assert scores.isfinite().all()


def test_an_s_range_that_reaches_no_end_is_raised_with_a_warning(caplog):
    occupations = make_occupations("more symbols than frames")
    with caplog.at_level(logging.WARNING, logger="panda_icefall.losses.pruning"):
        ranges = get_rnnt_prune_ranges(*occupations, 2)
    # 11 symbols in 4 frames: the band must climb by 3 per frame.
    assert ranges.shape[2] == 4
    assert "s_range: got 2" in caplog.text
    assert "using 4" in caplog.text


def test_a_wide_s_range_is_cut_to_the_lattice_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="panda_icefall.losses.pruning"):
        ranges = get_rnnt_prune_ranges(*make_occupations("regular"), 50)
    assert torch.equal(ranges, torch.arange(10).expand(4, 12, 10))
    assert caplog.text == ""


def test_nan_occupations_still_give_ranges_inside_the_lattice():
    px_grad, py_grad, boundary = make_occupations("regular")
    px_grad[0], py_grad[0] = float("nan"), float("nan")
    ranges = get_rnnt_prune_ranges(px_grad, py_grad, boundary, 3)
    assert ranges.min() == 0
    assert ranges.max() <= 9
    expected = get_rnnt_prune_ranges(*make_occupations("regular"), 3)
    assert torch.equal(ranges[1:], expected[1:])


def test_occupations_are_left_unchanged():
    px_grad, py_grad, boundary = make_occupations("regular")
    copies = px_grad.clone(), py_grad.clone()
    get_rnnt_prune_ranges(px_grad, py_grad, boundary, 3)
    assert torch.equal(px_grad, copies[0])
    assert torch.equal(py_grad, copies[1])


@pytest.mark.parametrize(
    ("px_shape", "py_shape", "boundary", "s_range", "error", "message"),
    [
        ((3, 5), (2, 4, 4), None, 2, ValueError, r"px_grad: got shape \(3, 5\)"),
        ((2, 3, 5), (2, 3, 4), None, 2, ValueError, r"py_grad: got .*\[2, 4, 4 or 5\]"),
        ((2, 3, 5), (2, 4, 3), None, 2, ValueError, r"py_grad: got shape \(2, 4, 3\)"),
        ((2, 3, 5), (2, 4, 4), [[0, 0, 3, 4]], 2, ValueError, r"boundary: got shape \(1, 4\)"),
        ((2, 3, 5), (2, 4, 4), [[0, 0, 3, 4], [0, 0, 3, 5]], 2, ValueError, r"boundary: .*b=1"),
        ((2, 3, 5), (2, 4, 4), None, 1, ValueError, r"s_range: got 1, expected at least 2.*reg"),
        ((2, 3, 4), (2, 4, 4), None, 0, ValueError, r"s_range: got 0, expected at least 1.*mod"),
        (
            (2, 5, 4),
            (2, 6, 4),
            [[0, 0, 4, 4], [0, 0, 5, 4]],
            2,
            ValueError,
            r"boundary: .*b=1 in the modified",
        ),
    ],
)
def test_unfit_occupations_are_refused(px_shape, py_shape, boundary, s_range, error, message):
    boundary = torch.tensor(boundary or [[0, 0, 3, 4], [0, 0, 1, 4]])
    with pytest.raises(error, match=message):
        get_rnnt_prune_ranges(torch.zeros(px_shape), torch.zeros(py_shape), boundary, s_range)


def test_a_boundary_of_another_dtype_is_refused():
    with pytest.raises(TypeError, match=r"boundary: got torch.int32, expected torch.int64"):
        get_rnnt_prune_ranges(
            torch.zeros(1, 2, 4), torch.zeros(1, 3, 3), torch.zeros(1, 4).int(), 2
        )


@pytest.mark.k2
@pytest.mark.parametrize("name", ["regular", "modified", "later begins"])
@pytest.mark.parametrize("s_range", [2, 3, 5, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_ranges_are_exactly_those_of_k2(name, s_range, dtype, seed):
    import k2

    occupations = make_occupations(name, dtype, seed)
    assert torch.equal(
        get_rnnt_prune_ranges(*occupations, s_range),
        k2.get_rnnt_prune_ranges(*occupations, s_range),
    )


# do_rnnt_pruning


def make_projections():
    generator = torch.Generator().manual_seed(0)
    am = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    lm = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    ranges = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 2, 2, 2]]).unsqueeze(2) + torch.arange(2)
    return am, lm, ranges


def test_each_site_gets_its_frame_and_its_state():
    am, lm, ranges = make_projections()
    am_pruned, lm_pruned = do_rnnt_pruning(am, lm, ranges)
    assert am_pruned.shape == (2, 5, 2, 3)
    assert lm_pruned.shape == (2, 5, 2, 7)
    assert am_pruned.data_ptr() == am.data_ptr()
    for b in range(2):
        for t in range(5):
            for r in range(2):
                assert torch.equal(am_pruned[b, t, r], am[b, t])
                assert torch.equal(lm_pruned[b, t, r], lm[b, ranges[b, t, r]])


def test_gradients_add_up_where_sites_share_an_input():
    am, lm, ranges = make_projections()
    inputs = am.requires_grad_(), lm.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, m: do_rnnt_pruning(a, m, ranges), inputs)


@pytest.mark.k2
def test_pruned_projections_and_gradients_are_those_of_k2():
    import k2

    am, lm, ranges = make_projections()
    results = []
    for function in (do_rnnt_pruning, k2.do_rnnt_pruning):
        inputs = am.clone().requires_grad_(), lm.clone().requires_grad_()
        outputs = function(*inputs, ranges)
        weight = torch.arange(7, dtype=torch.float64)
        loss = (outputs[0] ** 2).sum() + (outputs[1] * weight).sum()
        results.append((*outputs, *torch.autograd.grad(loss, inputs)))
    for value, reference in zip(*results):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"ranges": torch.zeros(2, 5).long()}, ValueError, r"ranges: got shape \(2, 5\)"),
        ({"ranges": torch.zeros(2, 5, 2)}, TypeError, r"ranges: got torch.float32"),
        (
            {"ranges": torch.full((2, 5, 2), 4)},
            ValueError,
            r"ranges: got state 4 .*b=0 at t=0.*S=3",
        ),
        ({"ranges": torch.full((2, 5, 2), -1)}, ValueError, r"ranges: got state -1"),
        ({"am": torch.zeros(2, 6, 3)}, ValueError, r"am: got shape \(2, 6, 3\).*\[2, 5, H\]"),
        ({"lm": torch.zeros(3, 4, 7)}, ValueError, r"lm: got shape \(3, 4, 7\).*\[2, S\+1, H\]"),
        ({"lm": torch.zeros(2, 7)}, ValueError, r"lm: got shape \(2, 7\)"),
    ],
)
def test_unfit_projections_are_refused(changed, error, message):
    arguments = dict(zip(("am", "lm", "ranges"), make_projections())) | changed
    with pytest.raises(error, match=message):
        do_rnnt_pruning(**arguments)
