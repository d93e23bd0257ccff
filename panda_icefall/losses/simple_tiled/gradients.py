"""The gradients of the simple loss's sums over classes, in the same tiles, computed again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import Block, Selections, SimpleTilePlan
from panda_icefall.losses.simple_tiled.projection import Peaks, Projection, ProjectionGrads
from panda_icefall.losses.simple_tiled.sums import Masses
from panda_icefall.losses.simple_tiled.unigram import unigram_backward


@dataclass(frozen=True)
class Adjoints:
    """Derivatives of the loss by the sums, shaped as these.

    Attributes:
      mass, lm_mass, unigram_mass: by the masses themselves, not their logarithms.
      unigram: by its values where they are selected.
      am_selected, lm_symbol, lm_blank: by the selected values, the maxima held fixed.
      am_peak, lm_peak: `[B, T]` and `[B, S+1]`, by the maxima over all terms that they enter.
    """

    mass: Tensor
    lm_mass: Tensor
    unigram: Tensor | None
    unigram_mass: Tensor | None
    am_selected: Tensor
    lm_symbol: Tensor
    lm_blank: Tensor
    am_peak: Tensor
    lm_peak: Tensor


def add_gradients(
    am: Projection,
    lm: Projection,
    selections: Selections,
    plan: SimpleTilePlan,
    unigram_plan: SimpleTilePlan | None,
    sums: Masses,
    adjoints: Adjoints,
    am_grads: ProjectionGrads,
    lm_grads: ProjectionGrads,
) -> None:
    """Add the gradients of both projections; `adjoints.unigram` is added to as well."""
    for low, high in plan.class_tiles():
        for block in plan.blocks:
            _add_tile(am, lm, selections, sums, adjoints, am_grads, lm_grads, block, low, high)
    if unigram_plan is not None and adjoints.unigram is not None:
        am.release()
        lm.release()
        unigram_backward(lm, unigram_plan, sums.lm_peaks, adjoints.unigram, lm_grads)


def _add_tile(
    am: Projection,
    lm: Projection,
    selections: Selections,
    sums: Masses,
    adjoints: Adjoints,
    am_grads: ProjectionGrads,
    lm_grads: ProjectionGrads,
    block: Block,
    low: int,
    high: int,
) -> None:
    """Add one tile's gradients."""
    am_exp = am.tile(block, block.frames, low, high)
    lm_exp = lm.tile(block, selections.ids.shape[1], low, high)
    sums.am_peaks.exp_below(am_exp, block)
    sums.lm_peaks.exp_below(lm_exp, block)
    am_grad = am.buffer("grad", *am_exp.shape)
    lm_grad = lm.buffer("grad", *lm_exp.shape)
    _tile_grads(am_exp, lm_exp, am_grad, lm_grad, sums, adjoints, block, low, high)
    _add_selected(am_grad, lm_grad, selections, adjoints, block, low, high)
    _add_peak(am_grad, sums.am_peaks, adjoints.am_peak, block, low)
    _add_peak(lm_grad, sums.lm_peaks, adjoints.lm_peak, block, low)
    am_grads.add(am, am_grad, block, low, high)
    lm_grads.add(lm, lm_grad, block, low, high)


def _tile_grads(
    am_exp: Tensor,
    lm_exp: Tensor,
    am_grad: Tensor,
    lm_grad: Tensor,
    sums: Masses,
    adjoints: Adjoints,
    block: Block,
    low: int,
    high: int,
) -> None:
    """Fill a tile's gradients with what comes through the masses."""
    part, frames = block.utterances, slice(block.frames)
    by_mass = adjoints.mass[part, :, frames]
    if sums.unigram is None or adjoints.unigram_mass is None or adjoints.unigram is None:
        torch.bmm(by_mass.transpose(1, 2), lm_exp, out=am_grad)
    else:
        by_unigram_mass = adjoints.unigram_mass[part, frames]
        torch.mul(by_unigram_mass.unsqueeze(2), sums.unigram[low:high], out=am_grad)
        am_grad.baddbmm_(by_mass.transpose(1, 2), lm_exp)
        flat = am_exp.view(-1, high - low)
        adjoints.unigram[low:high] += torch.mv(flat.t(), by_unigram_mass.reshape(-1))
    torch.bmm(by_mass, am_exp, out=lm_grad)
    am_grad.mul_(am_exp)
    lm_grad.add_(adjoints.lm_mass[part].unsqueeze(2)).mul_(lm_exp)


def _add_selected(
    am_grad: Tensor,
    lm_grad: Tensor,
    selections: Selections,
    adjoints: Adjoints,
    block: Block,
    low: int,
    high: int,
) -> None:
    """Add what comes through the selected values; a symbol may occur twice, or be the blank."""
    part = block.utterances
    b, s, c = selections.inside(low, block)
    t = torch.arange(block.frames, device=b.device)
    am_values = adjoints.am_selected[part, :, : block.frames][b, s]
    am_grad.index_put_((b[:, None], t, c[:, None]), am_values, accumulate=True)
    lm_grad.index_put_((b, s, c), adjoints.lm_symbol[part][b, s], accumulate=True)
    if low <= selections.blank < high:
        lm_grad[:, :, selections.blank - low] += adjoints.lm_blank[part]


def _add_peak(grad: Tensor, peaks: Peaks, adjoint: Tensor, block: Block, low: int) -> None:
    """Add what comes through the maxima at the classes that they were met at."""
    n, length, tile_classes = grad.shape
    c = peaks.classes[block.utterances, :length] - low
    is_inside = (c >= 0) & (c < tile_classes)
    values = adjoint[block.utterances, :length].masked_fill(~is_inside, 0.0)
    b = torch.arange(n, device=c.device)[:, None]
    r = torch.arange(length, device=c.device)
    grad.index_put_((b, r, c.clamp(0, tile_classes - 1)), values, accumulate=True)
