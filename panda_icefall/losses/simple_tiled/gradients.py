"""The gradients of the simple loss's sums over classes, in the same tiles, computed again."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import SimpleTilePlan
from panda_icefall.losses.simple_tiled.source import LogitSource, Parts
from panda_icefall.losses.simple_tiled.sums import Masses
from panda_icefall.losses.simple_tiled.unigram import unigram_backward


@dataclass(frozen=True)
class Adjoints:
    """Derivatives of the loss by the sums, shaped as these.

    Attributes:
      mass, lm_mass, unigram_mass: by the masses themselves, not their logarithms.
      peaks: ``[B, S+1, T]``, by the maxima of am and lm alike; None: nothing reaches them.
      unigram: by its values where they are selected.
      am_selected, lm_selected: by the selected values.
    """

    mass: Tensor
    peaks: Tensor | None
    lm_mass: Tensor
    unigram: Tensor | None
    unigram_mass: Tensor | None
    am_selected: Tensor
    lm_selected: Tensor


def add_gradients(
    am: LogitSource,
    lm: LogitSource,
    ids: Tensor,
    plan: SimpleTilePlan,
    unigram_plan: SimpleTilePlan | None,
    kernels: ModuleType,
    sums: Masses,
    adjoints: Adjoints,
    am_grads: Parts,
    lm_grads: Parts,
) -> None:
    """Add the gradients of both sources' parts; ``adjoints.unigram`` is added to as well."""
    for utterances, live in plan.blocks_on(ids.device):
        am_rows = am.open(utterances, live, am_grads)
        lm_rows = lm.open(utterances, lm.all_rows, lm_grads)
        am_peak, lm_peak = sums.am_peak[utterances, live], sums.lm_peak[utterances]
        by_mass = adjoints.mass[utterances, :, live]
        by_unigram_mass = adjoints.unigram_mass
        if by_unigram_mass is not None:
            by_unigram_mass = by_unigram_mass[utterances, live]
        # What lm gets regardless of the frame, it gets with the first ones.
        is_first = live.start == 0
        by_lm_mass = adjoints.lm_mass[utterances] if is_first else None
        by_peaks = None if adjoints.peaks is None else adjoints.peaks[utterances, :, live]
        by_am_peak = None if by_peaks is None else by_peaks.sum(dim=1)
        by_lm_peak = None if by_peaks is None else by_peaks.sum(dim=2)
        chosen = ids[utterances]
        am_selected = adjoints.am_selected[utterances, :, live]
        lm_selected = adjoints.lm_selected[utterances]
        for low, high in plan.class_tiles():
            am_exp = kernels.exp_below_(am_rows.tile(low, high), am_peak, am_rows.bias(low, high))
            lm_exp = kernels.exp_below_(lm_rows.tile(low, high), lm_peak, lm_rows.bias(low, high))
            am_grad, lm_grad = am.buffer("grad", am_exp.shape), lm.buffer("grad", lm_exp.shape)
            torch.bmm(by_mass.transpose(1, 2), lm_exp, out=am_grad)
            torch.bmm(by_mass, am_exp, out=lm_grad)
            weights = None
            if adjoints.unigram is not None and by_unigram_mass is not None:
                assert sums.unigram is not None
                weights = sums.unigram[low:high]
                flat = am_exp.flatten(0, 1)
                by_unigram = torch.mv(flat.t(), by_unigram_mass.flatten())
                adjoints.unigram[low:high].add_(by_unigram)
            if by_am_peak is not None and by_lm_peak is not None:
                _give_to_peaks(am_grad, am_exp, by_am_peak)
                _give_to_peaks(lm_grad, lm_exp, by_lm_peak)
            am_tile, lm_tile = am.gradient_tile(am_grad), lm.gradient_tile(lm_grad)
            kernels.gradient_(
                am_grad, am_exp, am_tile, scale=by_unigram_mass, weights=weights,
                selected=(chosen, low, am_selected) if am.merges_selected else None,
            )  # fmt: skip
            kernels.gradient_(
                lm_grad, lm_exp, lm_tile, shift=by_lm_mass,
                selected=(chosen, low, lm_selected) if lm.merges_selected and is_first else None,
            )  # fmt: skip
            am_rows.add(am_tile, low, high)
            lm_rows.add(lm_tile, low, high)
        if not am.merges_selected:
            am_rows.add_at(chosen, am_selected)
        if is_first and not lm.merges_selected:
            lm_rows.add_at(chosen, lm_selected)
        am_rows.close()
        lm_rows.close()
    if unigram_plan is not None and adjoints.unigram is not None:
        am.release()
        lm.release()
        unigram_backward(lm, unigram_plan, kernels, sums.lm_peak, adjoints.unigram, lm_grads)


def _give_to_peaks(grad: Tensor, exp: Tensor, by_peak: Tensor) -> None:
    """Add the derivative by a row's maximum to the class that has it, the first of equal ones.

    Args:
      grad, exp: ``[n, length, c]``; ``exp`` is 1 at the maximum, ``grad`` is multiplied by it
        later.
      by_peak: ``[n, length]``, 0 afterwards in the rows whose maximum is in this tile.
    """
    top, index = exp.max(dim=2)
    given = torch.where(top == 1.0, by_peak, torch.zeros_like(by_peak))
    grad.scatter_add_(2, index.unsqueeze(2), given.unsqueeze(2))
    by_peak.sub_(given)
