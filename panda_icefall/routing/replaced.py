"""What k2's functions are replaced by while PANDA is applied."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from panda_icefall.dynamo import is_traced, opaque
from panda_icefall.losses import dense
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.pruning import check_pruning_form
from panda_icefall.routing import routed_loss, routed_simple_loss
from panda_icefall.routing.deferred import DeferredJoint
from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.finding_projections import check_projection_names
from panda_icefall.routing.hosts import as_k2_arguments
from panda_icefall.routing.joint_sites import RangesSites
from panda_icefall.routing.nodes import Table
from panda_icefall.routing.observing import current_observer
from panda_icefall.routing.stand_in import StandIn
from panda_icefall.routing.status import LossTotals, RoutingCounters

Function = Callable[..., Any]


@dataclass(frozen=True)
class Options:
    """How routed losses are computed: see ``panda_icefall.apply``."""

    tiles: LossOptions
    projections: Mapping[str, str] | None
    is_strict: bool
    routes_ctc: bool = False

    @classmethod
    def of(
        cls,
        workspace_mib: float | None = None,
        adjoint_tolerance: float | None = None,
        engine: str = "auto",
        projections: Mapping[str, str] | None = None,
        strict: bool = False,
        ctc: bool = False,
        recursion: str = "auto",
    ) -> Options:
        """From what a user gives.

        Raises:
          ValueError, TypeError: an option is out of range, or names no kind of projection.
          MissingEngineError: Triton or k2 is asked for and not installed.
        """
        if workspace_mib is not None and not 0 < workspace_mib < float("inf"):
            raise ValueError(
                f"workspace_mib: got {workspace_mib}, expected a number above 0, in MiB, or None"
            )
        if projections is not None:
            check_projection_names(projections)
            if "ctc" in projections and not ctc:
                raise ValueError(
                    f"projections: got ctc={projections['ctc']!r} with ctc=False; give ctc=True, "
                    "or leave the name out"
                )
        workspace_bytes = None if workspace_mib is None else int(workspace_mib * 2**20)
        tiles = LossOptions(workspace_bytes, adjoint_tolerance, engine, recursion)
        return cls(tiles, projections, strict, ctc)


@dataclass
class RoutingState:
    """What the replaced functions share.

    Attributes:
      options: of the ``apply`` in force; None: not applied.
      counters: since ``apply``, or since they were reset.
      unrecorded: what to log, once, when a simple loss is given ordinary tensors.
      said: what was logged once since ``apply``.
    """

    options: Options | None = None
    counters: RoutingCounters = field(default_factory=RoutingCounters)
    unrecorded: list[str] = field(default_factory=list)
    said: set[str] = field(default_factory=set)

    def say_once(self, text: str) -> None:
        """Log it, the first time."""
        if text not in self.said:
            self.said.add(text)
            logging.warning("panda: %s; said once", text)

    def say_unrecorded(self) -> None:
        """Log why am and lm of a simple loss were not recorded, if it is known and not said yet."""
        while self.unrecorded:
            logging.warning("panda: %s; said once", self.unrecorded.pop(0))

    def refuse_dense(self, loss: Function, reason: str) -> None:
        """Where the user asked for it, stop before a loss is computed as without PANDA.

        Raises:
          PandaError: ``apply(strict=True)`` is in force.
        """
        if self.options is None or not self.options.is_strict:
            return
        name = f"{loss.__module__.partition('.')[0]}.{loss.__name__}"
        counted = self.counters.totals.materialised.items()
        ops = ", ".join(f"{operation} ({times} times)" for operation, times in counted)
        cause = f"; recorded tensors were turned into ordinary ones by {ops}" if ops else ""
        raise PandaError(
            f"strict=True: {name} would be computed as without PANDA: {reason}{cause}; fix that, "
            "or leave out strict"
        )


def recording_pruning(original: Function, state: RoutingState) -> Function:
    """``do_rnnt_pruning`` that gives two deferred joints."""

    @functools.wraps(original)
    @opaque
    def do_rnnt_pruning(am: Any, lm: Any, ranges: Any) -> Any:
        tensors = all(isinstance(t, Tensor) for t in (am, lm, ranges))
        if not tensors or is_traced():
            return original(am, lm, ranges)
        check_pruning_form(am, lm, ranges)
        sites, report = RangesSites(ranges), state.counters.count_joint
        return (
            DeferredJoint(Table(am, by_symbol=False), sites, report),
            DeferredJoint(Table(lm, by_symbol=True), sites, report),
        )

    return do_rnnt_pruning


def pruned_loss_with_hat(original: Function) -> Function:
    """A host's ``rnnt_loss_pruned``, or, where it knows no ``use_hat_loss``, one that does.

    k2's of 1.23.4 does not; HAT is then the project's own dense loss.
    """
    signature = inspect.signature(original)
    if "use_hat_loss" in signature.parameters:
        return original
    hat = inspect.Parameter("use_hat_loss", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False)
    signature = signature.replace(parameters=[*signature.parameters.values(), hat])

    @functools.wraps(original)
    def rnnt_loss_pruned(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        if given.arguments.pop("use_hat_loss"):
            return dense.rnnt_loss_pruned(**as_k2_arguments(given.arguments), use_hat_loss=True)
        return original(**given.arguments)

    rnnt_loss_pruned.__signature__ = signature  # type: ignore[attr-defined]
    return rnnt_loss_pruned


def routed_pruned_loss(original: Function, state: RoutingState) -> Function:
    """``rnnt_loss_pruned`` that takes a recorded joiner, and ``use_hat_loss`` in any case."""
    dense_loss = pruned_loss_with_hat(original)
    signature = inspect.signature(dense_loss)

    @functools.wraps(original)
    @opaque
    def rnnt_loss_pruned(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        logits, options, counters = given.arguments["logits"], state.options, state.counters
        if isinstance(logits, DeferredJoint) and options is not None:
            wants_occupations = given.arguments.get("return_grad", False)
            reason = "return_grad" if wants_occupations else routed_loss.why_not(logits)
            if reason is None:
                loss = routed_loss.compute(
                    logits,
                    as_k2_arguments(given.arguments),
                    options.tiles,
                    counters=counters.tiles,
                    observer=current_observer(),
                )
                counters.add(LossTotals(losses_routed=1))
                return loss
            state.refuse_dense(original, reason)
            given.arguments["logits"] = logits.materialise(reason)
        else:
            state.refuse_dense(original, "it was given ordinary logits")
        counters.add(LossTotals(losses_dense=1))
        return dense_loss(*given.args, **given.kwargs)

    rnnt_loss_pruned.__signature__ = signature  # type: ignore[attr-defined]
    return rnnt_loss_pruned


def simple_loss_in_tiles(original: Function, state: RoutingState) -> Function:
    """``rnnt_loss_smoothed`` or ``rnnt_loss_simple`` of recorded projections, or of tensors."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    @opaque
    def simple_loss(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        arguments, options, counters = given.arguments, state.options, state.counters
        for name in ("am", "lm"):
            value = arguments[name]
            if isinstance(value, StandIn):
                reason = routed_simple_loss.why_not(value)
                if options is None:
                    reason = "PANDA was reverted"
                if reason is not None:
                    arguments[name] = value.materialise(reason)
        if options is None or not routed_simple_loss.takes(arguments):
            state.refuse_dense(original, "am and lm are half tensors, or of two dtypes, or traced")
            for name in ("am", "lm"):
                if isinstance(arguments[name], StandIn):
                    arguments[name] = arguments[name].materialise("a loss of k2")
            counters.add(LossTotals(simple_losses_dense=1))
            return original(*given.args, **given.kwargs)
        loss = routed_simple_loss.compute(
            as_k2_arguments(arguments), options.tiles, counters=counters.simple_tiles
        )
        recorded = [isinstance(arguments[name], StandIn) for name in ("am", "lm")]
        is_deferred = any(recorded)
        if not all(recorded):
            state.say_unrecorded()
        counters.add(
            LossTotals(simple_losses_routed=1, simple_losses_of_tensors=int(not is_deferred))
        )
        return loss

    return simple_loss
