"""``torch.nn.functional.ctc_loss`` that takes the recorded log-probs of a CTC head."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dtypes import WIDE
from panda_icefall.dynamo import is_traced, opaque
from panda_icefall.losses.ctc import CtcTargets, selected_ctc_loss
from panda_icefall.normalizer import RowLogits, RowProgram, TileCounters, TileOptions
from panda_icefall.normalizer.autocast import autocast_dtype
from panda_icefall.routing.ctc_head import CtcLogProbs
from panda_icefall.routing.replaced import Function, RoutingState
from panda_icefall.routing.sharded_modules import in_forward_of
from panda_icefall.routing.stand_in import StandIn
from panda_icefall.routing.status import LossTotals

__all__ = ["routed_ctc_loss"]


def routed_ctc_loss(original: Function, state: RoutingState) -> Function:
    """``ctc_loss`` of recorded log-probs, or of tensors, which is torch's.

    Args:
      original: torch's.
      state: says how tiles are cut; counts.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    @opaque
    def ctc_loss(*args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return original(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        log_probs, options = given.arguments["log_probs"], state.options
        reason = "PANDA was reverted" if options is None else _why_not(log_probs)
        if options is not None and reason is None:
            loss = _compute(given.arguments, options.tiles, state.counters.ctc_tiles)
            state.counters.add(LossTotals(ctc_losses_routed=1))
            return loss
        state.refuse_dense(original, str(reason))
        if isinstance(log_probs, StandIn):
            given.arguments["log_probs"] = log_probs.materialise(f"ctc_loss ({reason})")
        state.counters.add(LossTotals(ctc_losses_dense=1))
        return original(*given.args, **given.kwargs)

    return ctc_loss


def _why_not(log_probs: Any) -> str | None:
    """The reason these log-probs go to torch, or None."""
    if not isinstance(log_probs, CtcLogProbs):
        return "no log_softmax" if isinstance(log_probs, StandIn) else "ordinary log-probs"
    if log_probs.is_materialised:
        return "log-probs used elsewhere"
    if log_probs.grad_enabled != torch.is_grad_enabled():
        return "loss in another grad mode than the head"
    # Autocast computes the loss in float32.
    if log_probs.dtype not in WIDE and autocast_dtype(log_probs.device) is None:
        return "half log-probs"
    return "no frames" if 0 in log_probs.shape else None


def _compute(arguments: Mapping[str, Any], options: TileOptions, counters: TileCounters) -> Tensor:
    """The loss that torch's ``ctc_loss`` would return.

    Args:
      arguments: those of it by name; ``_why_not`` gave None.
      options: how tiles are cut and computed.
      counters: totals to add to.

    Raises:
      PandaError: what the head read was changed in place since.
      ValueError, TypeError: as ``CtcTargets.of`` and ``selected_ctc_loss``.
    """
    log_probs: CtcLogProbs = arguments["log_probs"]
    T, B, C = log_probs.shape
    targets = CtcTargets.of(
        arguments["targets"],
        arguments["input_lengths"],
        arguments["target_lengths"],
        blank=arguments["blank"],
        batch=B,
        max_frames=T,
        classes=C,
    )
    call = log_probs.call

    def selected() -> Tensor:
        call.check_unchanged()
        rows = RowProgram.of(log_probs.rows().reshape(B * T, -1))
        return selected_ctc_loss(
            RowLogits(rows, call.weight, call.bias, call.cast),
            targets,
            options,
            counters=counters,
            reduction=arguments["reduction"],
            zero_infinity=arguments["zero_infinity"],
        )

    loss = in_forward_of(call.tensors(), selected)
    return loss.to(log_probs.dtype) if log_probs.dtype in WIDE else loss
