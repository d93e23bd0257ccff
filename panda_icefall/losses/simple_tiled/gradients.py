"""The gradients of the simple loss's sums over classes, in the same tiles, computed again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import SimpleTilePlan
from panda_icefall.losses.simple_tiled.source import LogitSource, Parts, exp_below_
from panda_icefall.losses.simple_tiled.sums import Masses
from panda_icefall.losses.simple_tiled.unigram import unigram_backward


@dataclass(frozen=True)
class Adjoints:
    """Derivatives of the loss by the sums, shaped as these; the maxima are held fixed.

    Attributes:
      mass, lm_mass, unigram_mass: by the masses themselves, not their logarithms.
      unigram: by its values where they are selected.
      am_selected, lm_selected: by the selected values.
    """

    mass: Tensor
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
    sums: Masses,
    adjoints: Adjoints,
    am_grads: Parts,
    lm_grads: Parts,
) -> None:
    """Add the gradients of both sources' parts; `adjoints.unigram` is added to as well."""
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
        by_lm_mass = adjoints.lm_mass[utterances].unsqueeze(2)
        for low, high in plan.class_tiles():
            am_exp = exp_below_(am_rows.tile(low, high), am_peak)
            lm_exp = exp_below_(lm_rows.tile(low, high), lm_peak)
            am_grad, lm_grad = am.buffer("grad", *am_exp.shape), lm.buffer("grad", *lm_exp.shape)
            torch.bmm(by_mass.transpose(1, 2), lm_exp, out=am_grad)
            torch.bmm(by_mass, am_exp, out=lm_grad)
            if adjoints.unigram is not None and by_unigram_mass is not None:
                assert sums.unigram is not None
                am_grad.addcmul_(by_unigram_mass.unsqueeze(2), sums.unigram[low:high])
                flat = am_exp.flatten(0, 1)
                adjoints.unigram[low:high] += torch.mv(flat.t(), by_unigram_mass.flatten())
            am_rows.add(am_grad.mul_(am_exp), low, high)
            if is_first:
                lm_grad.add_(by_lm_mass)
            lm_rows.add(lm_grad.mul_(lm_exp), low, high)
        chosen = ids[utterances]
        am_rows.add_at(chosen, adjoints.am_selected[utterances, :, live])
        if is_first:
            lm_rows.add_at(chosen, adjoints.lm_selected[utterances])
        am_rows.close()
        lm_rows.close()
    if unigram_plan is not None and adjoints.unigram is not None:
        am.release()
        lm.release()
        unigram_backward(lm, unigram_plan, sums.lm_peak, adjoints.unigram, lm_grads)
