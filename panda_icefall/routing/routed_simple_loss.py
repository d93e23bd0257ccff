"""The simple and the smoothed loss in tiles: of recorded projections, or of ordinary am and lm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dtypes import WIDE
from panda_icefall.dynamo import is_traced
from panda_icefall.losses.lattices.full import Loss
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.simple_tiled import Logits, Projection, tiled_rnnt_loss_smoothed
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.losses.smoothed import Scales
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.normalizer import TileCounters
from panda_icefall.routing.after_losses import tell
from panda_icefall.routing.computed_losses import ComputedSimpleLoss
from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.hosts import Kind
from panda_icefall.routing.projections import DeferredProjection
from panda_icefall.routing.sharded_modules import in_forward_of
from panda_icefall.routing.stand_in import StandIn


def why_not(value: StandIn) -> str | None:
    """Why am or lm, a stand-in, has to become a tensor; None: it need not."""
    if not isinstance(value, DeferredProjection):
        return "the simple loss"
    if value.is_materialised:
        return "used elsewhere"  # and counted there
    if value.dtype not in WIDE:
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
    return are_known and am.dtype == lm.dtype in WIDE and am.device == lm.device and not is_traced()


def compute(arguments: Mapping[str, Any], options: LossOptions, *, counters: TileCounters) -> Loss:
    """The loss that ``k2.rnnt_loss_smoothed`` or ``rnnt_loss_simple`` would return.

    Args:
      arguments: theirs by name; the simple loss has no scales. ``why_not`` was asked for each of
        ``am`` and ``lm`` that is deferred, and ``takes`` for both.
      options: how tiles are cut and computed.
      counters: totals to add to.

    Raises:
      PandaError: what a projection read was changed in place since.
      ValueError, TypeError: as ``tiled_rnnt_loss_smoothed``.
    """
    spec = LatticeSpec.of(arguments)
    scales = Scales(arguments.get("lm_only_scale", 0.0), arguments.get("am_only_scale", 0.0))

    def tiled() -> Loss:
        am, lm = (_source(arguments[name]) for name in ("am", "lm"))
        result = tiled_rnnt_loss_smoothed(
            lm, am, spec, scales, options, return_grad=arguments["return_grad"], counters=counters
        )
        loss = result[0] if isinstance(result, tuple) else result
        name, sources = Kind.SIMPLE_LOSS.value, (_detached(am), _detached(lm))
        tell(ComputedSimpleLoss(name, loss.detach(), *sources, spec, scales, options), loss)
        return result

    given = [arguments[name] for name in ("am", "lm")]
    recorded = [value for value in given if isinstance(value, DeferredProjection)]
    return in_forward_of([tensor for value in recorded for tensor in value.tensors()], tiled)


def _source(value: Tensor | DeferredProjection) -> Tensor | Projection:
    if isinstance(value, Tensor):
        return value
    call = value.call
    call.check_unchanged()
    if hasattr(call.weight, "to_local"):
        raise PandaError(
            f"{call.name}: got a DTensor for its weight, expected a whole tensor in the simple "
            "loss; shard the last layer of the joiner alone"
        )
    return Projection.of((call.input, call.weight, call.bias), call.cast)


def _detached(source: Tensor | Projection) -> LogitSource:
    """The same without its graph."""
    if isinstance(source, Tensor):
        return Logits.of((source.detach(),))
    return source.remake([None if part is None else part.detach() for part in source.parts])
