"""The simple and smoothed losses against a sum over paths of the dense joiner, and k2."""

import sys

import pytest
import torch
from simple_losses import tiled

from panda_icefall import rnnt
from panda_icefall.losses.smoothed import rnnt_loss_simple, rnnt_loss_smoothed

BLANK = 3
C = 8
TYPES = ["regular", "modified", "constrained"]
SCALES = [(0.1, 0.1), (0.25, 0.0), (0.0, 0.3), (0.0, 0.0)]

# name: (S, T, boundary rows or None)
BATCHES = {
    "full length": (3, 6, None),
    "ragged": (4, 7, [[0, 0, 4, 7], [0, 0, 2, 5], [0, 0, 0, 3]]),
    "later begins": (4, 7, [[1, 1, 4, 6], [0, 2, 3, 7]]),
    "more symbols than frames": (5, 3, [[0, 0, 5, 3], [0, 0, 2, 1]]),
    "no symbols": (0, 4, None),
}
CASES = [(name, "regular") for name in BATCHES]
CASES += [(name, kind) for name in ("full length", "ragged", "later begins") for kind in TYPES[1:]]


def make_batch(name, dtype=torch.float64):
    S, T, rows = BATCHES[name]
    B = 2 if rows is None else len(rows)
    generator = torch.Generator().manual_seed(len(name))
    lm = 2 * torch.randn(B, S + 1, C, generator=generator, dtype=torch.float64)
    am = 2 * torch.randn(B, T, C, generator=generator, dtype=torch.float64)
    symbols = torch.randint(C, (B, S), generator=generator)
    boundary = None if rows is None else torch.tensor(rows)
    if boundary is not None:
        # icefall pads with the blank.
        symbols.masked_fill_(torch.arange(S) >= boundary[:, 2:3], BLANK)
    return lm.to(dtype), am.to(dtype), symbols, boundary


def losses_by_paths(loss_by_paths, lm, am, symbols, boundary, scales, rnnt_type, delay_penalty):
    """Each of the three log-softmaxes over `[B, T, S+1, C]`, mixed, and all paths summed."""
    lm_only_scale, am_only_scale = scales
    joint = (am.unsqueeze(2) + lm.unsqueeze(1)).log_softmax(-1)
    unigram = lm.softmax(-1).mean(dim=(0, 1)).log()
    log_probs = (
        (1 - lm_only_scale - am_only_scale) * joint
        + lm_only_scale * lm.log_softmax(-1).unsqueeze(1)
        + am_only_scale * (am + unigram).log_softmax(-1).unsqueeze(2)
    )
    losses = [
        loss_by_paths(
            log_probs[b],
            symbols[b].tolist(),
            BLANK,
            rnnt_type,
            limits=None if boundary is None else tuple(boundary[b].tolist()),
            delay_penalty=delay_penalty,
        )
        for b in range(len(lm))
    ]
    return torch.stack(losses)


def loss_and_gradients(function, lm, am):
    inputs = lm.clone().requires_grad_(), am.clone().requires_grad_()
    losses = function(*inputs)
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    return [losses.detach(), *torch.autograd.grad((losses * weights).sum(), inputs)]


@pytest.mark.parametrize("delay_penalty", [0.0, 0.25])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize(("name", "rnnt_type"), CASES)
def test_loss_and_gradients_are_those_of_the_dense_joiner(
    loss_by_paths, name, rnnt_type, scales, delay_penalty
):
    lm, am, symbols, boundary = make_batch(name)
    got = loss_and_gradients(
        lambda lm, am: rnnt_loss_smoothed(
            lm, am, symbols, BLANK, *scales, boundary, rnnt_type, delay_penalty, "none"
        ),
        lm,
        am,
    )
    expected = loss_and_gradients(
        lambda lm, am: losses_by_paths(
            loss_by_paths, lm, am, symbols, boundary, scales, rnnt_type, delay_penalty
        ),
        lm,
        am,
    )
    for value, reference in zip(got, expected):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-13)


def test_fp32_is_as_exact_as_the_dense_joiner_in_fp32(loss_by_paths):
    lm, am, symbols, boundary = make_batch("ragged", torch.float32)

    def smoothed(lm, am):
        return rnnt_loss_smoothed(lm, am, symbols, BLANK, 0.1, 0.1, boundary, reduction="none")

    def dense(lm, am):
        return losses_by_paths(loss_by_paths, lm, am, symbols, boundary, (0.1, 0.1), "regular", 0.0)

    exact = loss_and_gradients(dense, lm.double(), am.double())
    theirs = loss_and_gradients(dense, lm, am)
    for value, dense_value, reference in zip(loss_and_gradients(smoothed, lm, am), theirs, exact):
        rms = reference.square().mean().sqrt()
        error = (value.double() - reference).square().mean().sqrt()
        dense_error = (dense_value.double() - reference).square().mean().sqrt()
        assert error <= max(1.5 * dense_error, 4 * 2**-23 * rms)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_the_simple_loss_is_the_smoothed_one_without_smoothing(rnnt_type):
    lm, am, symbols, boundary = make_batch("ragged")
    simple = rnnt_loss_simple(lm, am, symbols, BLANK, boundary, rnnt_type, 0.25, "sum")
    smoothed = rnnt_loss_smoothed(lm, am, symbols, BLANK, 0, 0, boundary, rnnt_type, 0.25, "sum")
    assert torch.equal(simple, smoothed)


def test_the_combined_part_does_not_change_with_the_level_of_the_projections():
    lm, am, symbols, boundary = make_batch("ragged")
    expected = rnnt_loss_smoothed(lm, am, symbols, BLANK, 0.2, 0.1, boundary)
    moved = rnnt_loss_smoothed(lm + 100, am - 300, symbols, BLANK, 0.2, 0.1, boundary)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=0)


FAR_APART = {
    "am": torch.tensor([[[0.0, -100.0, -200.0]] * 2]),
    "lm": torch.tensor([[[-100.0, 0.0, -200.0]] * 2]),
    "symbols": torch.tensor([[1]]),
    "boundary": torch.tensor([[0, 0, 1, 2]]),
}


@pytest.mark.parametrize("function", [rnnt_loss_smoothed, tiled])
@pytest.mark.parametrize(("scales", "share"), [((0.0, 0.0), 0.5), ((0.25, 0.1), 0.375)])
def test_where_am_and_lm_are_far_apart_the_gradient_sums_to_0(function, scales, share):
    """The products of probabilities are 0 in float32: all of k2's gradient goes to the maxima."""
    am, lm = FAR_APART["am"].clone().requires_grad_(), FAR_APART["lm"].clone().requires_grad_()
    given = {"symbols": FAR_APART["symbols"], "boundary": FAR_APART["boundary"]}
    loss = function(
        am=am, lm=lm, termination_symbol=0, lm_only_scale=scales[0], am_only_scale=scales[1],
        **given,
    )  # fmt: skip
    am_grad, lm_grad = torch.autograd.grad(loss, (am, lm))
    rows = torch.tensor([[[share, -share, 0.0]] * 2])
    torch.testing.assert_close(am_grad, rows, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(lm_grad.sum(2), torch.zeros(1, 2), rtol=0, atol=1e-6)


@pytest.mark.k2
@pytest.mark.parametrize("function", [rnnt_loss_smoothed, tiled])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("level", [50.0, 73.0])
def test_far_apart_the_gradients_are_those_of_k2_in_fp32(function, scales, level):
    """Peaks of 200 nats and more; the recursion is k2's own in both arms."""
    import k2

    g = torch.Generator().manual_seed(7)
    lm, am = level * torch.randn(2, 5, C, generator=g), level * torch.randn(2, 9, C, generator=g)
    symbols = torch.randint(C, (2, 4), generator=g)
    boundary = torch.tensor([[0, 0, 4, 9], [0, 0, 2, 6]])
    assert am.abs().max() > 100

    results = []
    for library in (function, k2.rnnt_loss_smoothed):
        results.append(
            loss_and_gradients(
                lambda lm, am, library=library: library(
                    lm=lm, am=am, symbols=symbols, termination_symbol=BLANK,
                    lm_only_scale=scales[0], am_only_scale=scales[1], boundary=boundary,
                    reduction="none",
                ),
                lm,
                am,
            )
        )  # fmt: skip
    for value, reference in zip(*results):
        assert value.isfinite().all()
        is_finite = reference.isfinite()  # k2's own gradient is 0 * inf in places
        assert is_finite.float().mean() > 0.9
        value, reference = value[is_finite], reference[is_finite]
        assert (value - reference).norm() <= 1e-4 * reference.norm()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_return_grad_gives_occupations_that_sum_to_the_path_length(reduction):
    lm, am, symbols, boundary = make_batch("ragged")
    loss, (px_grad, py_grad) = rnnt_loss_smoothed(
        lm, am, symbols, BLANK, boundary=boundary, reduction=reduction, return_grad=True
    )
    assert torch.equal(
        loss,
        rnnt_loss_smoothed(lm, am, symbols, BLANK, boundary=boundary, reduction=reduction),
    )
    assert px_grad.shape == (3, 4, 8)
    assert py_grad.shape == (3, 5, 7)
    lengths = boundary.double()
    torch.testing.assert_close(px_grad.sum((1, 2)), lengths[:, 2])
    torch.testing.assert_close(py_grad.sum((1, 2)), lengths[:, 3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_simple", [True, False])
def test_half_inputs_are_computed_in_float32_and_get_half_gradients(dtype, is_simple):
    lm, am, symbols, boundary = make_batch("ragged", dtype)
    function = rnnt_loss_simple if is_simple else rnnt_loss_smoothed

    def loss(lm, am):
        return function(lm, am, symbols, BLANK, boundary=boundary, reduction="none")

    got = loss_and_gradients(loss, lm, am)
    exact = loss_and_gradients(loss, lm.double(), am.double())
    assert [x.dtype for x in got] == [torch.float32, dtype, dtype]
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-6, atol=0)
    for x, ref in zip(got[1:], exact[1:]):
        torch.testing.assert_close(x.double(), ref, rtol=torch.finfo(dtype).eps, atol=1e-6)
    _, occupations = function(lm, am, symbols, BLANK, boundary=boundary, return_grad=True)
    assert {x.dtype for x in occupations} == {torch.float32}


def test_autocast_does_not_lower_the_precision():
    lm, am, symbols, boundary = make_batch("ragged", torch.float32)
    expected = rnnt_loss_smoothed(lm, am, symbols, BLANK, boundary=boundary)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rnnt_loss_smoothed(lm, am, symbols, BLANK, boundary=boundary), expected)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"lm": torch.zeros(3, 5)}, ValueError, r"lm: got shape \(3, 5\), expected \[B, S\+1, C\]"),
        ({"am": torch.zeros(3, 7)}, ValueError, r"am: got shape \(3, 7\), expected \[B, T, C\]"),
        ({"lm": torch.zeros(3, 5, C).long()}, TypeError, r"lm: got torch.int64.*lm.float\(\)"),
        ({"lm": torch.zeros(3, 5, C).half()}, TypeError, r"am: got torch.float64, expected lm's"),
        ({"am": torch.zeros(3, 7, C)}, TypeError, r"am: got torch.float32, expected lm's"),
        ({"am": torch.zeros(3, 7, 9).double()}, ValueError, r"lm: got .*\[3, S\+1, 9\] for am"),
        ({"lm": torch.zeros(2, 5, C).double()}, ValueError, r"lm: got shape \(2, 5, 8\)"),
        ({"lm": torch.zeros(3, 4, C).double()}, ValueError, r"symbols: got .*\[3, 3\] for lm"),
        ({"rnnt_type": "strict"}, ValueError, r"rnnt_type: got 'strict'"),
        ({"reduction": "max"}, ValueError, r"reduction: got 'max'"),
        ({"termination_symbol": C}, ValueError, r"termination_symbol: got 8"),
        ({"symbols": torch.full((3, 4), C)}, ValueError, r"symbols: got id 8 .*b=0 at s=0"),
        ({"boundary": torch.tensor([[0, 0, 4, 8]] * 3)}, ValueError, r"boundary: .*b=0.*T=7"),
    ],
)
@pytest.mark.parametrize("function", [rnnt_loss_smoothed, rnnt_loss_simple])
def test_unfit_inputs_are_refused(function, changed, error, message):
    lm, am, symbols, boundary = make_batch("ragged")
    arguments = {"lm": lm, "am": am, "symbols": symbols, "boundary": boundary}
    with pytest.raises(error, match=message):
        function(**({"termination_symbol": BLANK} | arguments | changed))


def test_the_stand_in_offers_what_a_recipe_calls_on_k2():
    for name in rnnt.__all__:
        assert callable(getattr(rnnt, name))
    lm, am, symbols, boundary = make_batch("ragged")
    _, grads = rnnt.rnnt_loss_smoothed(
        lm=lm,
        am=am,
        symbols=symbols,
        termination_symbol=BLANK,
        lm_only_scale=0.25,
        am_only_scale=0.0,
        boundary=boundary,
        reduction="sum",
        return_grad=True,
    )
    ranges = rnnt.get_rnnt_prune_ranges(*grads, boundary=boundary, s_range=3)
    am_pruned, lm_pruned = rnnt.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)
    loss = rnnt.rnnt_loss_pruned(
        logits=am_pruned + lm_pruned,
        symbols=symbols,
        ranges=ranges,
        termination_symbol=BLANK,
        boundary=boundary,
        reduction="sum",
    )
    # Pruning drops paths, so it can only raise the loss of the same additive joiner.
    assert loss >= rnnt_loss_simple(lm, am, symbols, BLANK, boundary, reduction="sum")


def test_the_stand_in_works_under_the_name_of_k2(monkeypatch):
    lm, am, symbols, boundary = make_batch("ragged")
    expected = rnnt_loss_simple(lm, am, symbols, BLANK, boundary)
    monkeypatch.setitem(sys.modules, "k2", rnnt)
    import k2

    torch.testing.assert_close(k2.rnnt_loss_simple(lm, am, symbols, BLANK, boundary), expected)


@pytest.mark.k2
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.25])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("name", ["full length", "ragged", "later begins"])
def test_loss_gradients_and_occupations_are_those_of_k2(
    name, rnnt_type, scales, delay_penalty, reduction
):
    import k2

    lm, am, symbols, boundary = make_batch(name)
    results = []
    for library in (rnnt, k2):
        inputs = lm.clone().requires_grad_(), am.clone().requires_grad_()
        args = [*inputs, symbols, BLANK, *scales, boundary, rnnt_type, delay_penalty, reduction]
        loss, occupations = library.rnnt_loss_smoothed(*args, return_grad=True)
        results.append((loss, *occupations, *torch.autograd.grad(loss.sum(), inputs)))
    for value, reference in zip(*results):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-13)


@pytest.mark.k2
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_the_simple_loss_is_that_of_k2(rnnt_type):
    import k2

    lm, am, symbols, boundary = make_batch("ragged")
    args = [lm, am, symbols, BLANK, boundary, rnnt_type, 0.25, "none", True]
    loss, occupations = rnnt_loss_simple(*args)
    k2_loss, k2_occupations = k2.rnnt_loss_simple(*args)
    for value, reference in zip((loss, *occupations), (k2_loss, *k2_occupations)):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=1e-13)
