"""The dense pruned loss against a sum over paths, k2 and torchaudio."""

import math

import pytest
import torch

from panda_icefall.losses.dense import rnnt_loss_pruned

BLANK = 2
C = 6
TYPES = ["regular", "modified", "constrained"]

# name: (S, T, s_range, boundary rows or None, first state of the band per frame)
BATCHES = {
    "full length": (3, 6, 3, None, [0, 0, 0, 1, 1, 1]),
    "ragged": (
        4,
        7,
        3,
        [[0, 0, 4, 7], [0, 0, 2, 4], [0, 0, 0, 5]],
        [[0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]],
    ),
    "later begins": (4, 7, 4, [[1, 1, 4, 6], [0, 2, 3, 7]], [0, 0, 1, 1, 1, 1, 1]),
    "full lattice": (3, 5, 4, [[0, 0, 3, 5], [0, 0, 1, 4]], [0, 0, 0, 0, 0]),
    "one state": (0, 4, 1, [[0, 0, 0, 4], [0, 0, 0, 2]], [0, 0, 0, 0]),
    "more symbols than frames": (6, 3, 4, [[0, 0, 6, 3], [0, 0, 4, 2]], [[0, 2, 3], [0, 1, 3]]),
}
FITS_EVERY_TYPE = [name for name, (S, T, *_) in BATCHES.items() if S <= T]
CASES = [(name, "regular") for name in BATCHES]
CASES += [(name, kind) for name in FITS_EVERY_TYPE for kind in TYPES[1:]]


def make_batch(name, dtype=torch.float64, scale=2.0):
    S, T, s_range, rows, first = BATCHES[name]
    generator = torch.Generator().manual_seed(len(name))
    B = 2 if rows is None else len(rows)
    boundary = None if rows is None else torch.tensor(rows)
    symbols = torch.randint(C, (B, S), generator=generator)
    if boundary is not None:
        # icefall pads with the blank.
        symbols.masked_fill_(torch.arange(S) >= boundary[:, 2:3], BLANK)
    ranges = torch.tensor(first).expand(B, T).unsqueeze(2) + torch.arange(s_range)
    logits = scale * torch.randn(B, T, s_range, C, generator=generator, dtype=torch.float64)
    return logits.to(dtype), symbols, ranges.contiguous(), boundary


def losses_by_paths(loss_by_paths, logits, symbols, ranges, boundary, rnnt_type, delay_penalty):
    B, T, s_range, _ = logits.shape
    S = symbols.shape[1]
    losses = []
    for b in range(B):
        log_probs = logits.new_zeros(T, S + 1, C)
        frames = torch.arange(T).unsqueeze(1).expand(T, s_range)
        log_probs = log_probs.index_put((frames, ranges[b]), logits[b].log_softmax(-1))
        first = ranges[b, :, 0].tolist()
        losses.append(
            loss_by_paths(
                log_probs,
                symbols[b].tolist(),
                BLANK,
                rnnt_type,
                limits=None if boundary is None else tuple(boundary[b].tolist()),
                kept=lambda t, s, first=first: first[t] <= s < first[t] + s_range,
                delay_penalty=delay_penalty,
            )
        )
    return losses


@pytest.mark.parametrize("delay_penalty", [0.0, 0.25])
@pytest.mark.parametrize(("name", "rnnt_type"), CASES)
def test_loss_and_gradient_are_those_of_all_paths_in_the_band(
    loss_by_paths, name, rnnt_type, delay_penalty
):
    logits, symbols, ranges, boundary = make_batch(name)
    logits.requires_grad_()
    got = rnnt_loss_pruned(
        logits, symbols, ranges, BLANK, boundary, rnnt_type, delay_penalty, "none"
    )
    expected = losses_by_paths(
        loss_by_paths, logits, symbols, ranges, boundary, rnnt_type, delay_penalty
    )
    # An utterance that the band or the type leaves no path has an infinite loss in k2 too.
    alive = [b for b, loss in enumerate(expected) if loss is not None]
    assert alive, "a case must have a path"
    assert got.isfinite().tolist() == [b in alive for b in range(len(expected))]
    expected = torch.stack([expected[b] for b in alive])
    torch.testing.assert_close(got[alive], expected, rtol=1e-12, atol=0)
    weights = torch.arange(1, len(alive) + 1, dtype=got.dtype)
    (grad,) = torch.autograd.grad((got[alive] * weights).sum(), logits)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-13)


def test_reductions_are_none_mean_and_sum():
    batch = make_batch("ragged")
    losses = rnnt_loss_pruned(*batch[:3], BLANK, batch[3], reduction="none")
    assert losses.shape == (3,)
    torch.testing.assert_close(rnnt_loss_pruned(*batch[:3], BLANK, batch[3]), losses.mean())
    total = rnnt_loss_pruned(*batch[:3], BLANK, batch[3], reduction="sum")
    torch.testing.assert_close(total, losses.sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("use_hat_loss", [False, True])
def test_half_logits_are_computed_in_float32_and_get_half_gradients(dtype, use_hat_loss):
    logits, symbols, ranges, boundary = make_batch("ragged")
    logits = logits.to(dtype)
    blank = 0 if use_hat_loss else BLANK
    results = []
    for given in (logits.clone(), logits.double()):
        loss = rnnt_loss_pruned(
            given.requires_grad_(), symbols, ranges, blank, boundary, use_hat_loss=use_hat_loss
        )
        results.append((loss.detach(), *torch.autograd.grad(loss, given)))
    (loss, grad), (exact_loss, exact_grad) = results
    assert (loss.dtype, grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("rnnt_type", ["modified", "constrained"])
def test_a_padded_batch_with_more_symbols_than_frames_is_each_utterances_own_loss(rnnt_type):
    """As k2 of 2025: what counts is the frames of each utterance, not the padded shape."""
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 4, 6, C, generator=g, dtype=torch.float64)
    symbols, ranges = torch.randint(C, (2, 5), generator=g), torch.arange(6).expand(2, 4, 6)
    boundary = torch.tensor([[0, 0, 3, 4], [0, 0, 2, 3]])
    padded = rnnt_loss_pruned(logits, symbols, ranges, BLANK, boundary, rnnt_type, reduction="none")
    for b, (_, _, S, T) in enumerate(boundary.tolist()):
        alone = rnnt_loss_pruned(
            logits[b : b + 1, :T, : S + 1], symbols[b : b + 1, :S], ranges[:1, :T, : S + 1],
            BLANK, rnnt_type=rnnt_type,
        )  # fmt: skip
        torch.testing.assert_close(padded[b], alone)


def test_a_constant_added_to_the_logits_changes_nothing():
    logits, symbols, ranges, boundary = make_batch("ragged")
    shifted = rnnt_loss_pruned(logits + 100, symbols, ranges, BLANK, boundary)
    torch.testing.assert_close(
        shifted, rnnt_loss_pruned(logits, symbols, ranges, BLANK, boundary), rtol=1e-12, atol=0
    )


def test_values_outside_the_boundary_have_no_influence():
    logits, symbols, ranges, boundary = make_batch("ragged")
    expected = rnnt_loss_pruned(logits, symbols, ranges, BLANK, boundary, reduction="none")
    frame = torch.arange(ranges.shape[1]).reshape(1, -1, 1)
    outside = (frame >= boundary[:, 3].reshape(-1, 1, 1)) | (ranges > boundary[:, 2, None, None])
    logits = logits.masked_fill(outside.unsqueeze(3), 1e30).requires_grad_()
    got = rnnt_loss_pruned(logits, symbols, ranges, BLANK, boundary, reduction="none")
    assert torch.equal(got, expected)
    got.sum().backward()
    assert logits.grad[outside].abs().sum() == 0


def test_one_class_costs_nothing():
    loss = rnnt_loss_pruned(
        torch.randn(1, 3, 1, 1, dtype=torch.float64),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, 3, 1, dtype=torch.int64),
        0,
    )
    assert loss.item() == 0


def test_nan_logits_of_a_whole_utterance_make_its_loss_nan_and_no_other():
    logits, symbols, ranges, boundary = make_batch("ragged")
    expected = rnnt_loss_pruned(logits, symbols, ranges, BLANK, boundary, reduction="none")
    logits[0] = math.nan
    got = rnnt_loss_pruned(logits, symbols, ranges, BLANK, boundary, reduction="none")
    assert got[0].isnan()
    assert torch.equal(got[1:], expected[1:])


def test_gradcheck_passes():
    logits, symbols, ranges, boundary = make_batch("ragged", scale=0.5)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: rnnt_loss_pruned(x, symbols, ranges, BLANK, boundary, delay_penalty=0.25),
        (logits,),
    )


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.zeros(3, 7, 3), ValueError, r"logits: got shape \(3, 7, 3\), expected \[B, T, s_ra"),
        (torch.zeros(3, 7, 3, C).long(), TypeError, r"logits: got torch.int64.*float16.*float\(\)"),
        (torch.zeros(3, 6, 3, C), ValueError, r"logits: got .* expected \[3, 7, 3, 6\]"),
        (torch.zeros(3, 7, 3, 1), ValueError, r"termination_symbol: got 2, expected .* C=1"),
    ],
)
def test_unfit_logits_are_refused(logits, error, message):
    _, symbols, ranges, boundary = make_batch("ragged")
    with pytest.raises(error, match=message):
        rnnt_loss_pruned(logits, symbols, ranges, BLANK, boundary)


def loss_and_gradient(function, logits, *args):
    logits = logits.clone().requires_grad_()
    loss = function(logits, *args)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


@pytest.mark.k2
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("delay_penalty", [0.0, 0.25])
@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("name", ["full length", "ragged", "later begins", "full lattice"])
def test_loss_and_gradient_are_those_of_k2(name, rnnt_type, delay_penalty, reduction):
    import k2

    logits, *args, boundary = make_batch(name)
    args += [BLANK, boundary, rnnt_type, delay_penalty, reduction]
    loss, grad = loss_and_gradient(rnnt_loss_pruned, logits, *args)
    expected_loss, expected_grad = loss_and_gradient(k2.rnnt_loss_pruned, logits, *args)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-13)
    has_path = k2.rnnt_loss_pruned(logits, *args[:-1], "none").isfinite()
    assert has_path.any()
    torch.testing.assert_close(grad[has_path], expected_grad[has_path], rtol=1e-12, atol=1e-13)
    assert not grad[~has_path].any()  # k2's is arbitrary there


@pytest.mark.k2
@pytest.mark.parametrize("rnnt_type", TYPES)
def test_fp32_is_at_most_as_wrong_as_k2_in_fp32(rnnt_type):
    import k2

    logits, *args, boundary = make_batch("ragged", torch.float32)
    args += [BLANK, boundary, rnnt_type]
    exact = loss_and_gradient(k2.rnnt_loss_pruned, logits.double(), *args)
    theirs = loss_and_gradient(k2.rnnt_loss_pruned, logits, *args)
    ours = loss_and_gradient(rnnt_loss_pruned, logits, *args)
    for value, k2_value, reference in zip(ours, theirs, exact):
        rms = reference.square().mean().sqrt()
        error = (value.double() - reference).square().mean().sqrt()
        k2_error = (k2_value.double() - reference).square().mean().sqrt()
        assert error <= max(1.5 * k2_error, 4 * 2**-23 * rms)


@pytest.mark.k2
def test_the_full_lattice_is_the_plain_transducer_loss_of_torchaudio():
    import torchaudio

    generator = torch.Generator().manual_seed(1)
    S, T = 4, 9
    boundary = torch.tensor([[0, 0, S, T], [0, 0, 2, 5], [0, 0, 1, 7]])
    symbols = torch.randint(3, C, (3, S), generator=generator)
    ranges = torch.arange(S + 1).expand(3, T, S + 1).contiguous()
    logits = torch.randn(3, T, S + 1, C, generator=generator)

    def plain_loss(logits):
        return torchaudio.functional.rnnt_loss(
            logits,
            symbols.int(),
            boundary[:, 3].int(),
            boundary[:, 2].int(),
            blank=BLANK,
            clamp=-1,
            reduction="none",
        )

    loss, grad = loss_and_gradient(
        rnnt_loss_pruned, logits.double(), symbols, ranges, BLANK, boundary, "regular", 0.0, "none"
    )
    plain, plain_grad = loss_and_gradient(plain_loss, logits)
    # torchaudio computes in fp32: 64 roundings of the largest value.
    torch.testing.assert_close(plain.double(), loss, rtol=64 * 2**-23, atol=0)
    torch.testing.assert_close(plain_grad.double(), grad, rtol=0, atol=64 * 2**-23)
