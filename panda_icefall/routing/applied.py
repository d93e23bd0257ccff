"""``Applied``: what is replaced now, in the hosts and in torch, and what is recorded."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import nn

from panda_icefall.routing.ctc_head import CtcLogits
from panda_icefall.routing.finding_projections import (
    find_ctc_heads,
    find_projections,
    unrecorded,
    warn_of_no_ctc_head,
)
from panda_icefall.routing.further_parameters import with_further, without
from panda_icefall.routing.hosts import (
    HostFunction,
    Kind,
    Symbol,
    awaited_hosts,
    functions_of,
    functions_to_replace,
    install_substitutes,
    names_of,
    warn_of_other_names,
)
from panda_icefall.routing.model_search import ModelSearch, module_at
from panda_icefall.routing.observing import forget_blind_hooks
from panda_icefall.routing.projections import DeferredProjection
from panda_icefall.routing.prune_ranges import complete_prune_ranges
from panda_icefall.routing.recorded_joiners import RecordedJoiner, find_joiners
from panda_icefall.routing.recorded_projections import RecordedProjection
from panda_icefall.routing.replaced import (
    RoutingState,
    recording_pruning,
    routed_pruned_loss,
    simple_loss_in_tiles,
)
from panda_icefall.routing.routed_ctc_loss import routed_ctc_loss
from panda_icefall.routing.routed_full_loss import routed_full_loss
from panda_icefall.routing.torch_swaps import TorchSwap, swaps_in_torch
from panda_icefall.swaps import Swap

_OURS: dict[Kind, Any] = {
    Kind.PRUNING: recording_pruning,
    Kind.PRUNED_LOSS: routed_pruned_loss,
    Kind.SIMPLE_LOSS: simple_loss_in_tiles,
    Kind.FULL_LOSS: routed_full_loss,
    Kind.PRUNE_RANGES: complete_prune_ranges,
}

Recorded = RecordedProjection | RecordedJoiner
Replacement = Swap | TorchSwap | Recorded


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
        self.replacements: list[Replacement] = [*self._swaps(found), *swaps_in_torch()]
        self.is_suspended = False
        self._is_over = False
        self._said = said
        self._has_simple_loss = any(s.kind is Kind.SIMPLE_LOSS for _, s, _ in found)
        self._searched: set[str] = set()  # classes of models, whose projections were looked for
        self._searched_for_ctc: set[str] = set()
        self._search = ModelSearch()
        self._routes_ctc = False
        self._parked: list[Replacement] = []  # of CTC, while that is not routed
        warn_of_other_names(found, said)
        for replacement in self.replacements:
            replacement.install()
        self._substitutes = install_substitutes(found)

    def _swaps(self, found: list[HostFunction]) -> list[Swap]:
        return [Swap.of(m, s.name, self._replacement(s, f)) for m, s, f in found]

    def _replacement(self, symbol: Symbol, original: Any) -> Any:
        further = symbol.further_parameters(original) or ()
        ours = _OURS[symbol.kind](without(original, further), self._state)
        return with_further(ours, original, further, symbol.kind, self._state)

    def search_again(self, model: nn.Module) -> None:
        """Look into a model anew: its modules may be others than when it was searched."""
        self._search.forget(model)

    def record_model(self, model: Any) -> list[Recorded]:
        """Record a model's projections and joiners; gives those that were not recorded already.

        What has been imported since ``apply``, with the model, is replaced too.
        """
        self.replace_awaited()
        recorded = {r.module for r in self.replacements if isinstance(r, Recorded)}
        found: list[Recorded] = []
        if isinstance(model, nn.Module):
            found = [*self._projections(model), *self._joiners(model)]
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
        if not found:  # as at every step but the first: what follows looks into all modules
            return
        warn_of_other_names(found, self._said)
        swaps = self._swaps(found)
        self.replacements += swaps
        if not self.is_suspended:
            for swap in swaps:
                swap.install()

    def _projections(self, model: nn.Module) -> list[RecordedProjection]:
        options = self._state.options
        names = None if options is None else options.projections
        asked = None if names is None else tuple(names.items())
        # Of a model in DDP; no attribute of the recipe's own is read, which may be computed.
        name = type(model._modules.get("module") or model).__name__
        found: dict[str, tuple[nn.Module, type[DeferredProjection]]] = {}
        if self._has_simple_loss:
            of_simple = self._search.modules(
                model, ("simple", asked), lambda model: find_projections(model, names)
            )
            found.update((path, (module, DeferredProjection)) for path, module in of_simple.items())
            if name not in self._searched:
                self._searched.add(name)
                self._state.unrecorded += unrecorded(model, name, of_simple)
        if options is not None and options.routes_ctc:
            of_ctc = self._search.modules(
                model, ("ctc", asked), lambda model: find_ctc_heads(model, names)
            )
            found.update((path, (module, CtcLogits)) for path, module in of_ctc.items())
            if not of_ctc and name not in self._searched_for_ctc:
                self._searched_for_ctc.add(name)
                warn_of_no_ctc_head(name)
        report = self._state.counters.count_projection
        return [
            RecordedProjection(module, path.rpartition(".")[2], f"{path}.forward", report, kind)
            for path, (module, kind) in found.items()
        ]

    def _joiners(self, model: nn.Module) -> list[RecordedJoiner]:
        report = self._state.counters.count_joint
        found = self._search.modules(model, "joiners", find_joiners)
        owners = [module_at(model, path.rpartition(".")[0]) for path in found]
        return [
            RecordedJoiner(module, owner, f"{path}.forward", report)
            for (path, module), owner in zip(found.items(), owners)
            if owner is not None
        ]

    def forget(self, replacements: Sequence[Replacement]) -> None:
        """Put these back, and record these modules no longer."""
        for replacement in replacements:
            replacement.remove()
        self.replacements = [r for r in self.replacements if r not in replacements]

    def route_ctc(self, is_asked: bool) -> None:
        """Replace torch's ``ctc_loss``; or put it back, and record no CTC head meanwhile."""
        if is_asked == self._routes_ctc:
            return
        self._routes_ctc = is_asked
        if not is_asked:
            self._parked = [r for r in self.replacements if _is_of_ctc(r)]
            self.forget(self._parked)
            return
        (name,) = names_of(Kind.CTC_LOSS)
        ours = routed_ctc_loss(getattr(F, name), self._state)
        returning = self._parked or [Swap.of(F, name, ours)]
        self.replacements += returning
        if not self.is_suspended:
            for replacement in returning:
                replacement.install()

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


def _is_of_ctc(replacement: Replacement) -> bool:
    if isinstance(replacement, Swap):
        return replacement.owner is F
    return isinstance(replacement, RecordedProjection) and replacement.kind is CtcLogits
