"""What the simple loss's arcs are made of, as a differentiable function of the projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from panda_icefall.losses.simple_tiled.gradients import Adjoints, add_gradients
from panda_icefall.losses.simple_tiled.plan import Selections, SimpleTilePlan
from panda_icefall.losses.simple_tiled.projection import Peaks, Projection, ProjectionGrads
from panda_icefall.losses.simple_tiled.sums import Masses, sum_over_classes
from panda_icefall.normalizer.autocast import no_autocast


@dataclass(frozen=True)
class SimpleTerms:
    """Log-probs in nats; those of am and lm, and the masses, are relative to their maxima.

    Attributes:
      am_selected: `[B, S+1, T]`, am at the symbols and, for the last s, at the blank.
      lm_symbol, lm_blank: `[B, S+1]`, lm at the same classes; the last symbol is not used.
      log_mass: `[B, S+1, T]`, joint normaliser.
      lm_log_mass: `[B, S+1]`, normaliser of lm alone.
      unigram_logp: `[B, S+1]` at the symbols and, for the last s, at the blank; or None.
      unigram_log_mass: `[B, T]`, normaliser of am and the unigram; or None.
    """

    am_selected: Tensor
    lm_symbol: Tensor
    lm_blank: Tensor
    log_mass: Tensor
    lm_log_mass: Tensor
    unigram_logp: Tensor | None
    unigram_log_mass: Tensor | None


def simple_terms(
    am: Projection,
    lm: Projection,
    selections: Selections,
    plan: SimpleTilePlan,
    unigram_plan: SimpleTilePlan | None,
) -> SimpleTerms:
    """The terms of the arcs, differentiable once in the tensors of both projections.

    Args:
      am: projection to `[B, T, C]`.
      lm: projection to `[B, S+1, C]`, of the same dtypes.
      selections: the classes to select.
      plan: the tiles; frames outside its blocks have no meaning.
      unigram_plan: tiles of the states alone, for the unigram; None where it is not wanted.

    Saved for backward: the projections' tensors, the ids, the masses, the maxima, the unigram.
    """
    call = _Call(am.head_dtype, am.dtype, selections.blank, selections.starts, plan, unigram_plan)
    tensors = (am.input, am.weight, am.bias, lm.input, lm.weight, lm.bias)
    with no_autocast(am.weight.device):
        return SimpleTerms(*_SimpleTerms.apply(call, selections.ids, selections.order, *tensors))


@dataclass(frozen=True)
class _Call:
    """What forward and backward share besides tensors, which autograd must hold."""

    head_dtype: torch.dtype | None
    dtype: torch.dtype
    blank: int
    starts: list[int]
    plan: SimpleTilePlan
    unigram_plan: SimpleTilePlan | None

    def projection(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Projection:
        return Projection(input, weight, bias, self.head_dtype, self.dtype)

    def selections(self, ids: Tensor, order: Tensor) -> Selections:
        return Selections(ids, self.blank, order, self.starts, self.plan.tile_classes)


class _SimpleTerms(torch.autograd.Function):
    """Autograd node from the six tensors of the projections to the fields of `SimpleTerms`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        call: _Call,
        ids: Tensor,
        order: Tensor,
        am_input: Tensor,
        am_weight: Tensor,
        am_bias: Tensor | None,
        lm_input: Tensor,
        lm_weight: Tensor,
        lm_bias: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        am = call.projection(am_input, am_weight, am_bias)
        lm = call.projection(lm_input, lm_weight, lm_bias)
        selections = call.selections(ids, order)
        sums = sum_over_classes(am, lm, selections, call.plan, call.unigram_plan)
        ctx.call = call
        ctx.save_for_backward(
            ids, order, am_input, am_weight, am_bias, lm_input, lm_weight, lm_bias,
            sums.am_peaks.values, sums.am_peaks.classes,
            sums.lm_peaks.values, sums.lm_peaks.classes,
            sums.mass, sums.lm_mass, sums.unigram, sums.unigram_mass,
        )  # fmt: skip
        return (
            sums.am_selected,
            sums.lm_symbol,
            sums.lm_blank,
            (sums.mass + _tiny(sums.mass)).log_(),
            sums.lm_mass.log(),
            None if sums.unigram is None else sums.unigram.log()[ids],
            None if sums.unigram_mass is None else sums.unigram_mass.log(),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        call: _Call = ctx.call
        ids, order, *rest = ctx.saved_tensors
        inputs, (am_values, am_classes, lm_values, lm_classes, *masses) = rest[:6], rest[6:]
        am, lm = call.projection(*inputs[:3]), call.projection(*inputs[3:])
        am_peaks, lm_peaks = Peaks(am_values, am_classes), Peaks(lm_values, lm_classes)
        sums = Masses(am_peaks, lm_peaks, *masses)
        needs = ctx.needs_input_grad[3:]
        am_grads = ProjectionGrads.zeros(am, needs[:3])
        lm_grads = ProjectionGrads.zeros(lm, needs[3:])
        with no_autocast(am.weight.device):
            add_gradients(
                am, lm, call.selections(ids, order), call.plan, call.unigram_plan, sums,
                _adjoints(ids, sums, *grads), am_grads, lm_grads,
            )  # fmt: skip
        wanted = (*am_grads.in_order(), *lm_grads.in_order())
        return (
            None, None, None,
            *(None if g is None else g.to(t.dtype) for g, t in zip(wanted, inputs)),
        )  # fmt: skip


def _adjoints(
    ids: Tensor,
    sums: Masses,
    am_selected: Tensor,
    lm_symbol: Tensor,
    lm_blank: Tensor,
    log_mass: Tensor,
    lm_log_mass: Tensor,
    unigram_logp: Tensor | None,
    unigram_log_mass: Tensor | None,
) -> Adjoints:
    """From the derivatives by the terms to those by the sums."""
    tiny = _tiny(sums.mass)
    by_mass = log_mass / (sums.mass + tiny)
    by_unigram = by_unigram_mass = None
    if sums.unigram is not None and sums.unigram_mass is not None:
        assert unigram_logp is not None
        assert unigram_log_mass is not None
        by_unigram_mass = unigram_log_mass / sums.unigram_mass
        values = unigram_logp / sums.unigram[ids]
        by_unigram = torch.zeros_like(sums.unigram).index_put_((ids,), values, accumulate=True)
    return Adjoints(
        mass=by_mass,
        lm_mass=lm_log_mass / sums.lm_mass,
        unigram=by_unigram,
        unigram_mass=by_unigram_mass,
        am_selected=am_selected,
        lm_symbol=lm_symbol,
        lm_blank=lm_blank,
        # The maxima cancel but for k2's tiny: log(mass + tiny) does not fall with them all the way.
        am_peak=by_mass.sum(dim=1) * tiny,
        lm_peak=by_mass.sum(dim=2) * tiny,
    )


def _tiny(mass: Tensor) -> float:
    """What k2 adds to the joint normaliser, so that its logarithm is finite."""
    return torch.finfo(mass.dtype).tiny
