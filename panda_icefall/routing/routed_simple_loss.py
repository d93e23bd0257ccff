"""The simple and the smoothed loss in tiles: of recorded projections, or of ordinary am and lm."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.losses.lattice_terms import Loss
from panda_icefall.losses.simple_tiled import (
    selected_rnnt_loss_smoothed,
    tiled_rnnt_loss_smoothed,
)
from panda_icefall.normalizer import TileCounters
from panda_icefall.routing.projections import DeferredProjection
from panda_icefall.routing.tracing import is_traced

_WIDE = (torch.float32, torch.float64)


def why_not(am: Any, lm: Any) -> str | None:
    """Why these, one of them a stand-in at least, have to become tensors; None: they need not."""
    if not (isinstance(am, DeferredProjection) and isinstance(lm, DeferredProjection)):
        return "only one of am and lm is recorded"
    if am.is_materialised or lm.is_materialised:
        return "am or lm used elsewhere"
    if am.dtype not in _WIDE or lm.dtype not in _WIDE:
        return "am or lm not cast to float32"
    if (am.dtype, am.call.cast, am.device) != (lm.dtype, lm.call.cast, lm.device):
        return "am and lm of different dtypes or devices"
    if {am.grad_enabled, lm.grad_enabled} != {torch.is_grad_enabled()}:
        return "loss in another grad mode than the projections"
    return None


def takes_tensors(arguments: Mapping[str, Any]) -> bool:
    """Whether the loss of these ordinary ``am`` and ``lm`` is computed in tiles too.

    Half ones are k2's, which computes in half then; so is what is being traced.
    """
    am, lm = arguments["am"], arguments["lm"]
    are_tensors = isinstance(am, Tensor) and isinstance(lm, Tensor)
    return are_tensors and am.dtype == lm.dtype in _WIDE and not is_traced()


def compute(
    arguments: Mapping[str, Any], *, workspace_bytes: int | None, counters: TileCounters
) -> Loss:
    """The loss that ``k2.rnnt_loss_smoothed`` or ``rnnt_loss_simple`` would return.

    Args:
      arguments: theirs by name; the simple loss has no scales. ``am`` and ``lm`` are both deferred
        or both tensors, and ``why_not`` or ``takes_tensors`` was asked.
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
    if isinstance(am, Tensor):
        return tiled_rnnt_loss_smoothed(lm=lm, am=am, **common)
    for call in (am.call, lm.call):
        call.check_unchanged()
    return selected_rnnt_loss_smoothed(
        *(am.call.input, am.call.weight, am.call.bias),
        *(lm.call.input, lm.call.weight, lm.call.bias),
        head_dtype=am.call.cast,
        **common,
    )
