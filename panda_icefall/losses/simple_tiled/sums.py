"""The simple loss's sums over classes, in tiles of utterances by classes.

With the maxima over classes ``am_peak``, ``lm_peak``, ``a = exp(am - am_peak)`` ``[B, T, C]`` and
``l = exp(lm - lm_peak)`` ``[B, S+1, C]``, all that the loss needs of the C classes is

    mass[b, s, t]      = sum_c l[b, s, c] a[b, t, c]       the joint normaliser
    lm_mass[b, s]      = sum_c l[b, s, c]                  that of lm alone
    unigram[c]         = mean_bs l[b, s, c] / lm_mass[b, s] + tiny
    unigram_mass[b, t] = sum_c unigram[c] a[b, t, c]       that of am and the unigram

and am, lm at the symbols and the blank. No tile is kept: running maxima rescale what was summed
before, and ``gradients`` computes the tiles again.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import SimpleTilePlan
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.losses.simple_tiled.unigram import unigram_of

NEG_INF = float("-inf")


@dataclass(frozen=True)
class Masses:
    """The sums over classes of the module's formulas; 1 at frames outside the plan's blocks.

    Attributes:
      am_peak, lm_peak: ``[B, T]`` and ``[B, S+1]``.
      mass: ``[B, S+1, T]``.
      lm_mass: ``[B, S+1]``.
      unigram, unigram_mass: ``[C]`` and ``[B, T]``, or None where the unigram is not wanted.
    """

    am_peak: Tensor
    lm_peak: Tensor
    mass: Tensor
    lm_mass: Tensor
    unigram: Tensor | None
    unigram_mass: Tensor | None


@dataclass(frozen=True)
class Sums(Masses):
    """What remains of the C classes.

    Attributes:
      am_selected: ``[B, S+1, T]``, am at the symbol of each s and, for the last s, at the blank;
        relative to ``am_peak``, and 0 at frames outside the plan's blocks.
      lm_selected: ``[B, S+1, S+1]``, lm at the same classes, the states last; relative to
        ``lm_peak``.
    """

    am_selected: Tensor
    lm_selected: Tensor


def sum_over_classes(
    am: LogitSource,
    lm: LogitSource,
    ids: Tensor,
    plan: SimpleTilePlan,
    unigram_plan: SimpleTilePlan | None,
    kernels: ModuleType,
) -> Sums:
    """The sums, from one pass over the classes; a unigram takes two of lm before it.

    Args:
      am, lm: to ``[B, T, C]`` and ``[B, S+1, C]``.
      ids: int64 ``[B, S+1]``, the symbols and, in the last column, the blank.
      plan: the tiles.
      unigram_plan: tiles of the states alone; None where no unigram is wanted.
      kernels: of the tiles' rows.
    """
    (B, states), T = ids.shape, am.rows
    sums = Sums(
        am_peak=am.full(B, T, value=NEG_INF),
        lm_peak=lm.full(B, states, value=NEG_INF),
        mass=am.full(B, states, T, value=1.0),
        lm_mass=lm.full(B, states, value=1.0),
        unigram=None if unigram_plan is None else unigram_of(lm, unigram_plan, kernels),
        unigram_mass=None if unigram_plan is None else am.full(B, T, value=1.0),
        am_selected=am.full(B, states, T),
        lm_selected=lm.full(B, states, states),
    )
    for utterances, live in plan.blocks_on(ids.device):
        _sum_block(am, lm, ids, plan, kernels, sums, utterances, live)
    return sums


def _sum_block(
    am: LogitSource,
    lm: LogitSource,
    ids: Tensor,
    plan: SimpleTilePlan,
    kernels: ModuleType,
    sums: Sums,
    utterances: Tensor,
    live: slice,
) -> None:
    """Fill in the sums of some utterances at some frames."""
    n, states, frames = len(utterances), lm.rows, live.stop - live.start
    am_rows, lm_rows = am.open(utterances, live), lm.open(utterances, lm.all_rows)
    am_peak = am.full(n, frames, value=NEG_INF)
    lm_peak = lm.full(n, states, value=NEG_INF)
    mass, lm_mass = am.full(n, states, frames), lm.full(n, states)
    unigram_mass = None if sums.unigram is None else am.full(n, frames)
    for low, high in plan.class_tiles():
        am_exp, lm_exp = am_rows.tile(low, high), lm_rows.tile(low, high)
        weights = None if sums.unigram is None else sums.unigram[low:high]
        am_factor = kernels.fold_(
            am_exp, am_peak, am_rows.bias(low, high), weights=weights, weighted=unigram_mass
        )
        lm_factor = kernels.fold_(lm_exp, lm_peak, lm_rows.bias(low, high), mass=lm_mass)
        mass.mul_(lm_factor.unsqueeze(2)).mul_(am_factor.unsqueeze(1))
        mass.baddbmm_(lm_exp, am_exp.transpose(1, 2))
    chosen = ids[utterances]
    sums.am_peak[utterances, live] = am_peak
    sums.lm_peak[utterances] = lm_peak
    sums.mass[utterances, :, live] = mass
    sums.lm_mass[utterances] = lm_mass
    sums.am_selected[utterances, :, live] = am_rows.at(chosen).sub_(am_peak.unsqueeze(1))
    sums.lm_selected[utterances] = lm_rows.at(chosen).sub_(lm_peak.unsqueeze(1))
    if sums.unigram_mass is not None and unigram_mass is not None:
        sums.unigram_mass[utterances, live] = unigram_mass
