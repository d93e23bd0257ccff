"""What the simple loss's arcs are made of, as a differentiable function of am and lm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from panda_icefall.first_order import first_order_only
from panda_icefall.freed import refuse_freed, shapes_of
from panda_icefall.losses.simple_tiled.gradients import Adjoints, add_gradients
from panda_icefall.losses.simple_tiled.plan import SimpleTilePlan
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.losses.simple_tiled.sums import Masses, sum_over_classes
from panda_icefall.normalizer import TileCounters
from panda_icefall.normalizer.autocast import no_autocast


@dataclass(frozen=True)
class SimpleTerms:
    """Log-probs in nats; those of am and lm, and the masses, are relative to their maxima.

    Attributes:
      am_selected: ``[B, S+1, T]``, am at the symbols and, for the last s, at the blank.
      lm_selected: ``[B, S+1, S+1]``, lm at the same classes, the states last.
      log_mass: ``[B, S+1, T]``, joint normaliser.
      lm_log_mass: ``[B, S+1]``, normaliser of lm alone.
      unigram_logp: ``[B, S+1]`` at the symbols and, for the last s, at the blank; or None.
      unigram_log_mass: ``[B, T]``, normaliser of am and the unigram; or None.
    """

    am_selected: Tensor
    lm_selected: Tensor
    log_mass: Tensor
    lm_log_mass: Tensor
    unigram_logp: Tensor | None
    unigram_log_mass: Tensor | None


def simple_terms(
    am: LogitSource,
    lm: LogitSource,
    ids: Tensor,
    plan: SimpleTilePlan,
    unigram_plan: SimpleTilePlan | None,
    kernels: ModuleType,
    counters: TileCounters | None = None,
) -> SimpleTerms:
    """The terms of the arcs, differentiable once in the parts of both sources.

    Args:
      am: ``[B, T, C]``.
      lm: ``[B, S+1, C]``, of the same dtype.
      ids: int64 ``[B, S+1]``, the symbols and, in the last column, the blank.
      plan: the tiles; frames outside its blocks have no meaning.
      unigram_plan: tiles of the states alone, for the unigram; None where it is not wanted.
      kernels: of the tiles' rows.
      counters: adds up tiles and seconds, or None.

    Saved for backward: the parts, the ids, the masses, the maxima, the unigram.

    The maxima cancel but for k2's tiny in the joint normaliser: through it ``tiny / (mass + tiny)``
    of an arc's gradient goes to the classes of the maxima, as in k2. It is below every rounding,
    and is left out, unless am and lm disagree by 70 nats (float32) or 670 (float64).
    One device sync, to know that.
    """
    counters = TileCounters() if counters is None else counters
    call = _Call(am.remake, lm.remake, len(am.parts), plan, unigram_plan, kernels, counters)
    with no_autocast(am.device):
        return SimpleTerms(*_SimpleTerms.apply(call, ids, *am.parts, *lm.parts))


@dataclass(frozen=True)
class _Call:
    """What forward and backward share besides tensors, which autograd must hold."""

    make_am: Callable[[Sequence[Tensor | None]], LogitSource]
    make_lm: Callable[[Sequence[Tensor | None]], LogitSource]
    am_parts: int
    plan: SimpleTilePlan
    unigram_plan: SimpleTilePlan | None
    kernels: ModuleType
    counters: TileCounters

    def sources(self, parts: Sequence[Tensor | None]) -> tuple[LogitSource, LogitSource]:
        return self.make_am(parts[: self.am_parts]), self.make_lm(parts[self.am_parts :])

    @property
    def tiles(self) -> int:
        """Tiles of forward; backward has as many."""
        return self.plan.tiles + (2 * self.unigram_plan.tiles if self.unigram_plan else 0)


class _SimpleTerms(torch.autograd.Function):
    """Autograd node from the parts of the sources to the fields of ``SimpleTerms``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, call: _Call, ids: Tensor, *parts: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        am, lm = call.sources(parts)
        with call.counters.timed("forward", ids.device):
            sums = sum_over_classes(am, lm, ids, call.plan, call.unigram_plan, call.kernels)
        call.counters.add(tiles_forward=call.tiles)
        ctx.call = call
        least = _tiny(sums.mass) / torch.finfo(sums.mass.dtype).eps
        ctx.reaches_peaks = any(ctx.needs_input_grad) and bool((sums.mass < least).any())
        ctx.shapes = shapes_of(parts)
        ctx.save_for_backward(
            ids, *parts, sums.am_peak, sums.lm_peak,
            sums.mass, sums.lm_mass, sums.unigram, sums.unigram_mass,
        )  # fmt: skip
        return (
            sums.am_selected,
            sums.lm_selected,
            (sums.mass + _tiny(sums.mass)).log_(),
            sums.lm_mass.log(),
            None if sums.unigram is None else sums.unigram.log()[ids],
            None if sums.unigram_mass is None else sums.unigram_mass.log(),
        )

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        call: _Call = ctx.call
        needs = ctx.needs_input_grad[2:]
        ids, *rest = ctx.saved_tensors
        parts, sums = rest[: len(needs)], Masses(*rest[len(needs) :])
        refuse_freed(parts, ctx.shapes)
        am, lm = call.sources(parts)
        am_grads = am.zeros_of_parts(needs[: call.am_parts])
        lm_grads = lm.zeros_of_parts(needs[call.am_parts :])
        with no_autocast(ids.device), call.counters.timed("backward", ids.device):
            add_gradients(
                am, lm, ids, call.plan, call.unigram_plan, call.kernels, sums,
                _adjoints(ids, sums, ctx.reaches_peaks, *grads), am_grads, lm_grads,
            )  # fmt: skip
        call.counters.add(tiles_backward=call.tiles)
        wanted = zip((*am_grads, *lm_grads), parts)
        return (None, None, *(None if g is None else g.to(part.dtype) for g, part in wanted))


def _adjoints(
    ids: Tensor,
    sums: Masses,
    reaches_peaks: bool,
    am_selected: Tensor,
    lm_selected: Tensor,
    log_mass: Tensor,
    lm_log_mass: Tensor,
    unigram_logp: Tensor | None,
    unigram_log_mass: Tensor | None,
) -> Adjoints:
    """From the derivatives by the terms to those by the sums."""
    by_unigram = by_unigram_mass = None
    if sums.unigram is not None and sums.unigram_mass is not None:
        assert unigram_logp is not None
        assert unigram_log_mass is not None
        by_unigram_mass = unigram_log_mass / sums.unigram_mass
        values = unigram_logp / sums.unigram[ids]
        by_unigram = torch.zeros_like(sums.unigram).index_put_((ids,), values, accumulate=True)
    tiny = _tiny(sums.mass)
    return Adjoints(
        # Where all products are 0 nothing goes to them, rather than the 0 * inf of k2's gradient.
        mass=(log_mass / (sums.mass + tiny)).masked_fill_(sums.mass == 0.0, 0.0),
        peaks=log_mass * (tiny / (sums.mass + tiny)) if reaches_peaks else None,
        lm_mass=lm_log_mass / sums.lm_mass,
        unigram=by_unigram,
        unigram_mass=by_unigram_mass,
        am_selected=am_selected,
        lm_selected=lm_selected,
    )


def _tiny(mass: Tensor) -> float:
    """What k2 adds to the joint normaliser, so that its logarithm is finite."""
    return torch.finfo(mass.dtype).tiny
