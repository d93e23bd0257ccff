"""``Applied``: what is replaced now, in the hosts and in torch, and the recorded projections."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from panda_icefall.routing.finding_projections import find_projections, unrecorded
from panda_icefall.routing.hosts import (
    HostFunction,
    Kind,
    awaited_hosts,
    functions_of,
    functions_to_replace,
    install_substitutes,
    warn_of_other_names,
)
from panda_icefall.routing.module_calls import forget_refusals
from panda_icefall.routing.observing import forget_blind_hooks
from panda_icefall.routing.recorded_joiners import RecordedJoiner, find_joiners
from panda_icefall.routing.recorded_projections import RecordedProjection
from panda_icefall.routing.replaced import (
    RoutingState,
    recording_pruning,
    routed_pruned_loss,
    simple_loss_in_tiles,
)
from panda_icefall.routing.routed_full_loss import routed_full_loss
from panda_icefall.routing.torch_swaps import swaps_in_torch
from panda_icefall.swaps import Swap

_OURS: dict[Kind, Any] = {
    Kind.PRUNING: recording_pruning,
    Kind.PRUNED_LOSS: routed_pruned_loss,
    Kind.SIMPLE_LOSS: simple_loss_in_tiles,
    Kind.FULL_LOSS: routed_full_loss,
}

Recorded = RecordedProjection | RecordedJoiner


class Applied:
    """Replaces the functions when it is made.

    Args:
      state: what the replaced functions share.
      said: as of ``warn_of_other_names``.

    Attributes:
      replacements: in the order in which they were installed.
      is_suspended: whether the originals are in place for a while.

    Raises:
      PandaError, UnknownSignatureError: as ``functions_to_replace``; nothing is replaced then.
    """

    def __init__(self, state: RoutingState, said: set[tuple[str, str]]) -> None:
        self._state = state
        self._awaited = awaited_hosts()
        found = functions_to_replace()
        self.replacements: list[Swap | Recorded] = [*self._swaps(found), *swaps_in_torch()]
        self.is_suspended = False
        self._is_over = False
        self._said = said
        self._has_simple_loss = any(s.kind is Kind.SIMPLE_LOSS for _, s, _ in found)
        self._searched: set[str] = set()  # classes of models, whose projections were looked for
        warn_of_other_names(found, said)
        for replacement in self.replacements:
            replacement.install()
        self._substitutes = install_substitutes(found)

    def _swaps(self, found: list[HostFunction]) -> list[Swap]:
        return [Swap.of(m, s.name, _OURS[s.kind](f, self._state)) for m, s, f in found]

    def record_model(self, model: Any) -> list[Recorded]:
        """Record a model's projections and joiners; gives those that were not recorded already.

        What has been imported since ``apply``, with the model, is replaced too.
        """
        self.replace_awaited()
        recorded = {r.module for r in self.replacements if not isinstance(r, Swap)}
        found: list[Recorded] = [*self._projections(model), *self._joiners(model)]
        added = [r for r in found if r.module not in recorded]
        self.replacements += added
        if not self.is_suspended:
            for replacement in added:
                replacement.install()
        return added

    def replace_awaited(self) -> None:
        """Replace the functions of hosts that have been imported since ``apply``."""
        still = awaited_hosts()
        found = [f for name in self._awaited if name not in still for f in functions_of(name)]
        self._awaited = still
        warn_of_other_names(found, self._said)
        swaps = self._swaps(found)
        self.replacements += swaps
        if not self.is_suspended:
            for swap in swaps:
                swap.install()

    def _projections(self, model: Any) -> list[RecordedProjection]:
        if not self._has_simple_loss:
            return []
        names = None if self._state.options is None else self._state.options.projections
        found = find_projections(model, names) if isinstance(model, nn.Module) else {}
        # Of a model in DDP; no attribute of the recipe's own is read, which may be computed.
        name = type(getattr(model, "_modules", {}).get("module", model)).__name__
        if name not in self._searched and isinstance(model, nn.Module):
            self._searched.add(name)
            self._state.unrecorded += unrecorded(model, name, found)
        report = self._state.counters.count_projection
        return [
            RecordedProjection(module, path.rpartition(".")[2], f"{path}.forward", report)
            for path, module in found.items()
        ]

    def _joiners(self, model: Any) -> list[RecordedJoiner]:
        found = find_joiners(model) if isinstance(model, nn.Module) else {}
        report = self._state.counters.count_joint
        return [
            RecordedJoiner(module, owner, f"{path}.forward", report)
            for path, (module, owner) in found.items()
        ]

    def forget(self, recorded: list[Recorded]) -> None:
        """Record these no longer."""
        for replacement in recorded:
            replacement.remove()
        self.replacements = [r for r in self.replacements if r not in recorded]

    def put_back(self) -> None:
        """Put all originals back but those that somebody has replaced, which is logged."""
        for replacement in self.replacements:
            if not replacement.remove() and not self.is_suspended:
                logging.warning(
                    "panda: %s was replaced by something else after apply(); left as it is",
                    replacement.full_name,
                )
        for name, module in self._substitutes.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        self._is_over = True
        forget_blind_hooks()
        forget_refusals()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The originals in place for the enclosed block."""
        displaced = [r for r in self.replacements if not r.remove()]
        before, self.is_suspended = self.is_suspended, True
        try:
            yield
        finally:
            self.is_suspended = before
            if not self._is_over:  # unlike after a revert() in the block
                for replacement in self.replacements:
                    if replacement not in displaced:
                        replacement.install()
