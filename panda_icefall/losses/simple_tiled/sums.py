"""The simple loss's sums over classes, in tiles of utterances by classes.

With the maxima over classes `am_peak`, `lm_peak`, `a = exp(am - am_peak)` `[B, T, C]` and
`l = exp(lm - lm_peak)` `[B, S+1, C]`, all that the loss needs of the C classes is

    mass[b, s, t]      = sum_c l[b, s, c] a[b, t, c]       the joint normaliser
    lm_mass[b, s]      = sum_c l[b, s, c]                  that of lm alone
    unigram[c]         = mean_bs l[b, s, c] / lm_mass[b, s] + tiny
    unigram_mass[b, t] = sum_c unigram[c] a[b, t, c]       that of am and the unigram

and am, lm at the symbols and the blank. A tile is gone after its turn: running maxima rescale
what was summed before, and `gradients` computes the tiles again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import Block, Selections, SimpleTilePlan
from panda_icefall.losses.simple_tiled.projection import Peaks, Projection
from panda_icefall.losses.simple_tiled.unigram import unigram_of


@dataclass(frozen=True)
class Masses:
    """The sums over classes of the module's formulas; 1 at frames outside the plan's blocks.

    Attributes:
      am_peaks, lm_peaks: of `[B, T]` and `[B, S+1]`.
      mass: `[B, S+1, T]`.
      lm_mass: `[B, S+1]`.
      unigram, unigram_mass: `[C]` and `[B, T]`, or None where the unigram is not wanted.
    """

    am_peaks: Peaks
    lm_peaks: Peaks
    mass: Tensor
    lm_mass: Tensor
    unigram: Tensor | None
    unigram_mass: Tensor | None


@dataclass(frozen=True)
class Sums(Masses):
    """What remains of the C classes.

    Attributes:
      am_selected: `[B, S+1, T]`, am at the symbol of each s and, for the last s, at the blank;
        relative to `am_peak`, and 0 at frames outside the plan's blocks.
      lm_symbol, lm_blank: `[B, S+1]`, lm at the same classes, relative to `lm_peak`.
    """

    am_selected: Tensor
    lm_symbol: Tensor
    lm_blank: Tensor


def sum_over_classes(
    am: Projection,
    lm: Projection,
    selections: Selections,
    plan: SimpleTilePlan,
    unigram_plan: SimpleTilePlan | None,
) -> Sums:
    """The sums, from one pass over the classes; a unigram takes two of lm before it."""
    B, states = selections.ids.shape
    T = am.input.shape[1]
    sums = Sums(
        am_peaks=Peaks.none_of(am),
        lm_peaks=Peaks.none_of(lm),
        mass=am.full(B, states, T, value=1.0),
        lm_mass=lm.full(B, states, value=1.0),
        unigram=None if unigram_plan is None else unigram_of(lm, unigram_plan),
        unigram_mass=None if unigram_plan is None else am.full(B, T, value=1.0),
        am_selected=am.full(B, states, T),
        lm_symbol=lm.full(B, states),
        lm_blank=lm.full(B, states),
    )
    for low, high in plan.class_tiles():
        for block in plan.blocks:
            _add_tile(am, lm, selections, sums, block, low, high)
    for block in plan.blocks:
        part, frames = block.utterances, slice(block.frames)
        sums.am_selected[part, :, frames] -= sums.am_peaks.values[part, None, frames]
    sums.lm_symbol.sub_(sums.lm_peaks.values)
    sums.lm_blank.sub_(sums.lm_peaks.values)
    return sums


def _add_tile(
    am: Projection,
    lm: Projection,
    selections: Selections,
    sums: Sums,
    block: Block,
    low: int,
    high: int,
) -> None:
    """Add the classes of one tile to the sums of its utterances."""
    part, frames = block.utterances, slice(block.frames)
    am_tile = am.tile(block, block.frames, low, high)
    lm_tile = lm.tile(block, selections.ids.shape[1], low, high)

    b, s, c = selections.inside(low, block)
    t = torch.arange(block.frames, device=b.device)
    sums.am_selected[part, :, frames][b, s] = am_tile[b[:, None], t, c[:, None]]
    sums.lm_symbol[part][b, s] = lm_tile[b, s, c]
    if low <= selections.blank < high:
        sums.lm_blank[part] = lm_tile[:, :, selections.blank - low]

    am_factor = sums.am_peaks.raised_by(am_tile, block, low)
    lm_factor = sums.lm_peaks.raised_by(lm_tile, block, low)
    am_exp = sums.am_peaks.exp_below(am_tile, block)
    lm_exp = sums.lm_peaks.exp_below(lm_tile, block)
    mass = sums.mass[part, :, frames].mul_(lm_factor.unsqueeze(2)).mul_(am_factor.unsqueeze(1))
    mass += torch.bmm(lm_exp, am_exp.transpose(1, 2))
    sums.lm_mass[part].mul_(lm_factor).add_(lm_exp.sum(dim=2))
    if sums.unigram is not None and sums.unigram_mass is not None:
        unigram_mass = sums.unigram_mass[part, frames].mul_(am_factor)
        unigram_mass += torch.matmul(am_exp, sums.unigram[low:high])
