"""A batch without utterances (B=0), the same in every loss: no loss, 0, or an error, never NaN.

Some ranks of a data-parallel run get such a batch where all utterances of theirs are filtered out.
"""

import pytest
import torch
from simple_losses import of_am_projection, of_projections, of_tensors
from torch import nn

import panda_icefall
from panda_icefall import losses
from panda_icefall.losses import dense, of_logits
from panda_icefall.losses.ctc import CtcTargets, selected_ctc_loss
from panda_icefall.normalizer import RowLogits, RowProgram, TileOptions

T, S, C, H, S_RANGE = 5, 3, 7, 4, 2
SYMBOLS = torch.zeros(0, S, dtype=torch.int64)
LENGTHS = torch.zeros(0, dtype=torch.int64)
RANGES = torch.zeros(0, T, S_RANGE, dtype=torch.int64)
BOUNDARIES = [None, torch.zeros(0, 4, dtype=torch.int64)]


class Joiner(nn.Module):
    def __init__(self):
        super().__init__()
        self.output = nn.Linear(H, C)

    def forward(self, am, lm):
        if am.dim() == 3:
            am, lm = am.unsqueeze(2), lm.unsqueeze(1)
        return self.output(torch.tanh(am + lm))


class Unrecordable(Joiner):
    def forward(self, am, lm):
        return super().forward(am, lm).roll(1, dims=-1)


def leaf(*shape):
    return torch.zeros(shape, dtype=torch.float64, requires_grad=True)


def of_full_logits(reduction, boundary):
    logits = leaf(0, T, S + 1, C)
    return dense.rnnt_loss(logits, SYMBOLS, 0, boundary, reduction=reduction), logits


def of_retained_logits(reduction, boundary):
    logits = leaf(0, T, S_RANGE, C)
    loss = losses.rnnt_loss_pruned(logits, SYMBOLS, RANGES, 0, boundary, reduction=reduction)
    return loss, logits


def as_torchaudio(reduction, boundary):
    logits = leaf(0, T, S + 1, C)
    return of_logits.rnnt_loss(logits, SYMBOLS, LENGTHS, LENGTHS, reduction=reduction), logits


def as_optimized_transducer(reduction, boundary):
    logits = leaf(0, C)
    loss = of_logits.transducer_loss(logits, SYMBOLS, LENGTHS, LENGTHS, 0, reduction=reduction)
    return loss, logits


def simple(reduction, boundary):
    am = leaf(0, T, C)
    lm = leaf(0, S + 1, C)
    return losses.rnnt_loss_simple(lm, am, SYMBOLS, 0, boundary, reduction=reduction), am


def smoothed(reduction, boundary):
    am, lm = leaf(0, T, C), leaf(0, S + 1, C)
    loss = losses.rnnt_loss_smoothed(
        lm, am, SYMBOLS, 0, lm_only_scale=0.25, am_only_scale=0.0, boundary=boundary,
        reduction=reduction,
    )  # fmt: skip
    return loss, am


def tiled(kind):
    def loss_of(reduction, boundary):
        data = [leaf(0, T, H), leaf(C, H), leaf(C), leaf(0, S + 1, H), leaf(C, H), leaf(C)]
        loss = kind(
            *data, symbols=SYMBOLS, termination_symbol=0, lm_only_scale=0.25, am_only_scale=0.0,
            boundary=boundary, reduction=reduction,
        )  # fmt: skip
        return loss, data[1]

    return loss_of


def own(joiner_class, **options):
    def loss_of(reduction, boundary):
        joiner = joiner_class().double()
        loss = panda_icefall.transducer_loss(
            joiner, leaf(0, T, H), leaf(0, S + 1, H), SYMBOLS, LENGTHS, LENGTHS,
            reduction=reduction, **options,
        )  # fmt: skip
        return loss, joiner.output.weight

    return loss_of


def own_pruned(joiner_class, **options):
    def loss_of(reduction, boundary):
        joiner = joiner_class().double()
        loss = panda_icefall.pruned_transducer_loss(
            joiner, leaf(0, T, H), leaf(0, S + 1, H), SYMBOLS, RANGES, boundary=boundary,
            reduction=reduction, **options,
        )  # fmt: skip
        return loss, joiner.output.weight

    return loss_of


def ctc(targets, lengths):
    def loss_of(reduction, boundary):
        weight = torch.randn(C, H, dtype=torch.float64, requires_grad=True)
        rows = RowProgram.of(torch.zeros(0, H, dtype=torch.float64))
        given = CtcTargets.of(targets, lengths, lengths, blank=0, batch=0, max_frames=T, classes=C)
        loss = selected_ctc_loss(
            RowLogits(rows, weight, None), given, TileOptions(), reduction=reduction
        )
        return loss, weight

    return loss_of


def of_arcs(reduction, boundary):
    px, py = leaf(0, S, T + 1), leaf(0, S + 1, T)
    return losses.score(px, py, boundary, "regular", 0.0, reduction), px


def of_band(reduction, boundary):
    target, blank = leaf(0, T, S_RANGE), leaf(0, T, S_RANGE)
    loss = losses.pruned_score(target, blank, RANGES, S, boundary, "regular", 0.0, reduction)
    return loss, target


LOSSES = {
    "of full logits": of_full_logits,
    "of retained logits": of_retained_logits,
    "as torchaudio": as_torchaudio,
    "as optimized_transducer": as_optimized_transducer,
    "simple": simple,
    "smoothed": smoothed,
    "tiled": tiled(of_tensors),
    "tiled, of projections": tiled(of_projections),
    "tiled, of the am projection": tiled(of_am_projection),
    "own": own(Joiner),
    "own, by calls": own(Unrecordable),
    "own, HAT": own(Joiner, use_hat_loss=True),
    "own, FastEmit": own(Joiner, fastemit_lambda=0.01),
    "own, clamp": own(Joiner, clamp=0.1),
    "own, one symbol per frame": own(Joiner, one_sym_per_frame=True),
    "own, multi-blank": own(Joiner, blank=C - 1, big_blank_durations=[2]),
    "own, TDT": own(Joiner, blank=C - 3, durations=[0, 1]),
    "own, TDT with omega": own(Joiner, blank=C - 3, durations=[0, 1], omega=0.1),
    "own pruned": own_pruned(Joiner),
    "own pruned, by calls": own_pruned(Unrecordable),
    "own pruned, HAT": own_pruned(Joiner, use_hat_loss=True),
    "own CTC, padded": ctc(SYMBOLS, LENGTHS),
    "own CTC, one utterance after another": ctc(LENGTHS, []),
    "of arcs": of_arcs,
    "of a band": of_band,
}
every = pytest.mark.parametrize("name", LOSSES)
given = pytest.mark.parametrize("boundary", BOUNDARIES, ids=["whole", "with a boundary"])


@every
@given
def test_the_mean_of_none_is_refused(name, boundary):
    with pytest.raises(ValueError, match=r"reduction: got 'mean' of a batch without .*\(B=0\)"):
        LOSSES[name]("mean", boundary)


@every
@given
@pytest.mark.parametrize(("reduction", "shape"), [("sum", ()), ("none", (0,))])
def test_their_sum_is_zero_and_has_no_gradient(name, boundary, reduction, shape):
    loss, parameter = LOSSES[name](reduction, boundary)
    assert tuple(loss.shape) == shape
    assert loss.sum() == 0
    (grad,) = torch.autograd.grad(loss.sum(), parameter)
    assert (grad == 0).all()


@pytest.mark.parametrize("is_pruned", [False, True])
def test_the_arcs_of_none_are_none(is_pruned):
    """They have no reduction."""
    if is_pruned:
        logits = torch.zeros(0, T, S_RANGE, C)
        px, py = dense.get_rnnt_logprobs_pruned(logits, SYMBOLS, RANGES, 0)
    else:
        px, py = dense.get_rnnt_logprobs_joint(torch.zeros(0, T, S + 1, C), SYMBOLS, 0)
    assert (px.shape, py.shape) == ((0, S, T + 1), (0, S + 1, T))
