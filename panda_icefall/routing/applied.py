"""``Applied``: what is replaced now, in the hosts and in torch, and the recorded projections."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import distributed

from panda_icefall.routing.ctc_head import CtcLogits
from panda_icefall.routing.custom_functions import find_tensors, function_apply
from panda_icefall.routing.finding_projections import (
    find_ctc_heads,
    find_projections,
    warn_of_no_ctc_head,
    warn_of_unrecorded,
)
from panda_icefall.routing.hosts import (
    Kind,
    functions_to_replace,
    names_of,
    warn_of_other_names,
)
from panda_icefall.routing.module_calls import forget_refusals, module_call
from panda_icefall.routing.observing import forget_blind_hooks
from panda_icefall.routing.projections import DeferredProjection
from panda_icefall.routing.recorded_projections import RecordedProjection
from panda_icefall.routing.replaced import (
    RoutingState,
    recording_pruning,
    routed_pruned_loss,
    simple_loss_in_tiles,
)
from panda_icefall.routing.routed_ctc_loss import routed_ctc_loss
from panda_icefall.routing.stand_in import as_tensors
from panda_icefall.routing.torch_functions import name_of
from panda_icefall.swaps import MISSING, Swap

_OURS: dict[Kind, Any] = {
    Kind.PRUNING: recording_pruning,
    Kind.PRUNED_LOSS: routed_pruned_loss,
    Kind.SIMPLE_LOSS: simple_loss_in_tiles,
}


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
        found = functions_to_replace()
        swaps = [Swap.of(m, s.name, _OURS[s.kind](f, state)) for m, s, f in found]
        self.replacements: list[Swap | RecordedProjection] = [*swaps, *_swaps_in_torch()]
        self.is_suspended = False
        self._is_over = False
        self._state = state
        self._has_simple_loss = any(s.kind is Kind.SIMPLE_LOSS for _, s, _ in found)
        self._searched: set[str] = set()  # classes of models, whose projections were looked for
        self._searched_for_ctc: set[str] = set()
        self._routes_ctc = False
        self._parked: list[Swap | RecordedProjection] = []  # of CTC, while that is not routed
        warn_of_other_names(found, said)
        for replacement in self.replacements:
            replacement.install()

    def record_projections(self, model: Any) -> list[RecordedProjection]:
        """Record a model's projections; gives those that were not recorded already."""
        options = self._state.options
        if not isinstance(model, nn.Module):
            return []
        names = None if options is None else options.projections
        # Of a model in DDP; no attribute of the recipe's own is read, which may be computed.
        name = type(model._modules.get("module") or model).__name__
        found: dict[str, tuple[nn.Module, type[DeferredProjection]]] = {}
        if self._has_simple_loss:
            of_simple = find_projections(model, names)
            found.update((path, (module, DeferredProjection)) for path, module in of_simple.items())
            if name not in self._searched:
                self._searched.add(name)
                warn_of_unrecorded(model, name, of_simple)
        if options is not None and options.routes_ctc:
            of_ctc = find_ctc_heads(model, names)
            found.update((path, (module, CtcLogits)) for path, module in of_ctc.items())
            if not of_ctc and name not in self._searched_for_ctc:
                self._searched_for_ctc.add(name)
                warn_of_no_ctc_head(name)
        recorded = {r.module for r in self.replacements if isinstance(r, RecordedProjection)}
        report = self._state.counters.count_projection
        added = [
            RecordedProjection(module, path.rpartition(".")[2], f"{path}.forward", report, kind)
            for path, (module, kind) in found.items()
            if module not in recorded
        ]
        self.replacements += added
        if not self.is_suspended:
            for projection in added:
                projection.install()
        return added

    def forget(self, replacements: Sequence[Swap | RecordedProjection]) -> None:
        """Put these back, and record these projections no longer."""
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


def _is_of_ctc(replacement: Swap | RecordedProjection) -> bool:
    if isinstance(replacement, Swap):
        return replacement.owner is F
    return replacement.kind is CtcLogits


def _swaps_in_torch() -> list[Swap]:
    """Of functions of torch that do not ask ``__torch_function__``.

    Ours take stand-ins, or turn them into the tensors that they stand for first.
    """
    function: Any = torch.autograd.Function
    swaps = [
        Swap.of(function, "apply", function_apply(vars(function).get("apply", MISSING))),
        Swap.of(nn.Module, "__call__", module_call(nn.Module.__call__)),
    ]
    for compiled in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        swaps.append(Swap.of(compiled, "__call__", _scripted_call(compiled.__call__)))
    # torch 1.13 does not ask there.
    swaps.append(Swap.of(torch.autograd, "backward", _given_tensors(torch.autograd.backward)))
    if hasattr(distributed, "_find_tensors"):
        ours = find_tensors(distributed._find_tensors)
        swaps.append(Swap.of(distributed, "_find_tensors", ours))
    return swaps


def _scripted_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """``__call__`` of a ``torch.jit.ScriptFunction`` or ``ScriptMethod``, given tensors."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = _scripted_name(self)
        return original(self, *as_tensors(args, name), **as_tensors(kwargs, name))

    return call


def _scripted_name(compiled: Any) -> str:
    owner = getattr(compiled, "owner", None)
    # "__torch__.scaling.SwooshR" and "forward", or the name of a function.
    kind = "" if owner is None else owner._type().name().rpartition(".")[2] + "."
    return f"scripted {kind}{compiled.name or name_of(compiled)}"


def _given_tensors(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that is given tensors instead of stand-ins."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        name = name_of(original)
        return original(*as_tensors(args, name), **as_tensors(kwargs, name))

    return call
