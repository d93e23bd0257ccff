"""The simple and the smoothed loss in tiles: of recorded projections, or of ordinary am and lm."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dynamo import is_traced
from panda_icefall.losses.lattice_terms import Loss
from panda_icefall.losses.simple_tiled import (
    Logits,
    Projection,
    rnnt_loss_smoothed_of,
    tiled_rnnt_loss_smoothed,
)
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.normalizer import TileCounters
from panda_icefall.routing.projections import DeferredProjection
from panda_icefall.routing.stand_in import StandIn

_WIDE = (torch.float32, torch.float64)


def why_not(value: StandIn) -> str | None:
    """Why am or lm, a stand-in, has to become a tensor; None: it need not."""
    if not isinstance(value, DeferredProjection):
        return "the simple loss"
    if value.is_materialised:
        return "used elsewhere"  # and counted there
    if value.dtype not in _WIDE:
        return "not cast to float32"
    if value.grad_enabled != torch.is_grad_enabled():
        return "loss in another grad mode than the projections"
    return None


def takes(arguments: Mapping[str, Any]) -> bool:
    """Whether the loss of these ``am`` and ``lm``, deferred or not, is computed in tiles.

    Half ones are k2's, which computes in half then, as are two of different dtypes or devices,
    which it refuses; so is what is being traced.
    """
    am, lm = arguments["am"], arguments["lm"]
    are_known = all(isinstance(value, (Tensor, DeferredProjection)) for value in (am, lm))
    return (
        are_known and am.dtype == lm.dtype in _WIDE and am.device == lm.device and not is_traced()
    )


def compute(
    arguments: Mapping[str, Any], *, workspace_bytes: int | None, counters: TileCounters
) -> Loss:
    """The loss that ``k2.rnnt_loss_smoothed`` or ``rnnt_loss_simple`` would return.

    Args:
      arguments: theirs by name; the simple loss has no scales. ``why_not`` was asked for each of
        ``am`` and ``lm`` that is deferred, and ``takes`` for both.
      workspace_bytes, counters: as in ``selected_rnnt_loss_smoothed``.

    Raises:
      PandaError: what a projection read was changed in place since.
      ValueError, TypeError: as ``selected_rnnt_loss_smoothed``.
    """
    am, lm, symbols = (arguments[name] for name in ("am", "lm", "symbols"))
    common = {
        # As k2, which takes any integer tensor and whatever counts as an int.
        "symbols": symbols.long() if symbols.dtype in (torch.int16, torch.int32) else symbols,
        "termination_symbol": operator.index(arguments["termination_symbol"]),
        "lm_only_scale": arguments.get("lm_only_scale", 0.0),
        "am_only_scale": arguments.get("am_only_scale", 0.0),
        "workspace_bytes": workspace_bytes,
        "counters": counters,
        **{
            name: arguments[name]
            for name in ("boundary", "rnnt_type", "delay_penalty", "reduction", "return_grad")
        },
    }
    if isinstance(am, Tensor) and isinstance(lm, Tensor):
        return tiled_rnnt_loss_smoothed(lm=lm, am=am, **common)
    return rnnt_loss_smoothed_of(lm=_source(lm), am=_source(am), **common)


def _source(value: Tensor | DeferredProjection) -> LogitSource:
    if isinstance(value, Tensor):
        return Logits.of((value,))
    call = value.call
    call.check_unchanged()
    return Projection.of((call.input, call.weight, call.bias), call.cast)
