"""``apply`` / ``revert``: put the recording functions in k2's place and count what they did."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable

import torch
from torch import Tensor

from panda_icefall.losses.pruning import check_pruning_form
from panda_icefall.normalizer import DEFAULT_WORKSPACE_BYTES
from panda_icefall.routing import routed_loss
from panda_icefall.routing.deferred import DeferredJoint
from panda_icefall.routing.errors import PandaError, UnknownSignatureError
from panda_icefall.routing.graph import Sites, Table
from panda_icefall.routing.observing import current_observer
from panda_icefall.routing.status import RoutingCounters, Status

STAND_IN = "panda_icefall.losses.k2_functions"

_PRUNING = ("am", "lm", "ranges")
_LOSS = (
    "logits symbols ranges termination_symbol boundary rnnt_type delay_penalty reduction"
).split()
_KNOWN_SIGNATURES: dict[str, tuple[tuple[str, ...], ...]] = {
    "do_rnnt_pruning": (_PRUNING,),
    "rnnt_loss_pruned": (tuple(_LOSS), (*_LOSS, "use_hat_loss")),
}


@dataclass(frozen=True)
class Options:
    """How routed losses are computed: see ``panda_icefall.apply``."""

    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    adjoint_tolerance: float | None = None


@dataclass(frozen=True)
class _Replacement:
    """One attribute of a module or class, ours and what stood there (``_MISSING``: inherited)."""

    owner: Any
    name: str
    original: Any
    ours: Any

    @property
    def full_name(self) -> str:
        prefix = "" if isinstance(self.owner, ModuleType) else f"{self.owner.__module__}."
        return f"{prefix}{self.owner.__name__}.{self.name}"

    def install(self) -> None:
        setattr(self.owner, self.name, self.ours)

    def remove(self) -> bool:
        """Put the original back; False if somebody else has replaced ours since."""
        if vars(self.owner).get(self.name) is not self.ours:
            return False
        if self.original is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)
        return True


_MISSING = object()


@dataclass
class _Applied:
    replacements: tuple[_Replacement, ...]
    options: Options


_applied: _Applied | None = None
_counters = RoutingCounters()


def apply(
    workspace_mib: float = DEFAULT_WORKSPACE_BYTES / 2**20, adjoint_tolerance: float | None = None
) -> None:
    """Route the pruned RNN-T loss of this process through the selected normaliser.

    Replaces ``do_rnnt_pruning`` and ``rnnt_loss_pruned`` in the module ``k2`` where it is
    installed, else in ``panda_icefall.losses.k2_functions``. A second call only changes the
    options. While applied, ``torch.autograd.Function.apply`` turns recorded arguments into tensors.

    What it does not reach: names imported by ``from k2 import rnnt_loss_pruned`` before; functions
    compiled by ``torch.jit.script``, which refuse a recorded joiner; losses other than the pruned
    one. What a joiner gets is no ``torch.Tensor``: ``isinstance`` says so, and module hooks that
    look for tensors pass it by.

    Args:
      workspace_mib: upper bound of a tile's scratch, in MiB.
      adjoint_tolerance: share of the absolute adjoint mass that backward may leave out, in
        ``[0, 1)``; None: half the eps of the accumulation dtype. 0: none.

    Raises:
      ValueError: an option is out of range.
      PandaError: a function to replace is missing.
      UnknownSignatureError: a function to replace has other parameters than those known.
    """
    global _applied
    if not 0 < workspace_mib < float("inf"):
        raise ValueError(f"workspace_mib: got {workspace_mib}, expected a number above 0, in MiB")
    if adjoint_tolerance is not None and not 0 <= adjoint_tolerance < 1:
        raise ValueError(f"adjoint_tolerance: got {adjoint_tolerance}, expected 0 <= it < 1")
    options = Options(int(workspace_mib * 2**20), adjoint_tolerance)
    if _applied is not None:
        _applied.options = options
        return
    module = patched_module()
    pruning, loss = (_checked(module, name) for name in _KNOWN_SIGNATURES)
    function_apply = vars(torch.autograd.Function).get("apply", _MISSING)
    reset_counters()
    _applied = _Applied(
        (
            _Replacement(module, "do_rnnt_pruning", pruning, _recording_pruning(pruning)),
            _Replacement(module, "rnnt_loss_pruned", loss, _routed_loss(loss)),
            _Replacement(
                torch.autograd.Function, "apply", function_apply, _function_apply(function_apply)
            ),
        ),
        options,
    )
    for replacement in _applied.replacements:
        replacement.install()


def revert() -> None:
    """Put the originals back; does nothing when not applied. Counters stay readable.

    A replacement that somebody else has wrapped or displaced since is left alone, with a warning.
    """
    global _applied
    if _applied is None:
        return
    for replacement in _applied.replacements:
        if not replacement.remove():
            logging.warning(
                "panda: %s was replaced by something else after apply(); left as it is",
                replacement.full_name,
            )
    _applied = None


@contextmanager
def patched(
    workspace_mib: float = DEFAULT_WORKSPACE_BYTES / 2**20, adjoint_tolerance: float | None = None
) -> Iterator[None]:
    """``apply`` for the enclosed block; afterwards as before, also when already applied."""
    before = None if _applied is None else _applied.options
    apply(workspace_mib, adjoint_tolerance)
    try:
        yield
    finally:
        if before is None:
            revert()
        elif _applied is not None:
            _applied.options = before


@contextmanager
def suspended() -> Iterator[None]:
    """The originals in place for the enclosed block (the dense arm of a comparison)."""
    applied = _applied
    if applied is None:
        yield
        return
    removed = [replacement for replacement in applied.replacements if replacement.remove()]
    try:
        yield
    finally:
        if _applied is applied:  # not reverted inside
            for replacement in removed:
                replacement.install()


def status() -> Status:
    """What is replaced now, and totals since ``apply`` (or ``reset_counters``)."""
    replacements = () if _applied is None else _applied.replacements
    return _counters.snapshot(tuple(replacement.full_name for replacement in replacements))


def reset_counters() -> None:
    """Set all totals to zero."""
    global _counters
    _counters = RoutingCounters()


def patched_module() -> ModuleType:
    """Where functions are replaced: k2 where it is installed, else the project's own functions."""
    if "k2" in sys.modules:
        return sys.modules["k2"]
    spec = importlib.util.find_spec("k2")
    # A folder that happens to be called k2 (a checkout in the working directory) has no origin.
    is_installed = spec is not None and spec.origin is not None
    return importlib.import_module("k2" if is_installed else STAND_IN)


def _checked(module: ModuleType, name: str) -> Callable[..., Any]:
    """The function to replace, if it is one we know."""
    where = f"{module.__name__}.{name}"
    function = getattr(module, name, None)
    version = getattr(module, "__dev_version__", getattr(module, "__version__", "unknown"))
    if function is None:
        raise PandaError(f"{where}: not found in version {version}; expected a k2 that has it")
    found = inspect.signature(function)
    known = _KNOWN_SIGNATURES[name]
    if tuple(found.parameters) not in known:
        expected = " or ".join(f"({', '.join(names)})" for names in known)
        raise UnknownSignatureError(
            f"{where} of version {version}: got {found}, expected the parameters {expected}; "
            f"this k2 is not supported"
        )
    return function


def _recording_pruning(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def do_rnnt_pruning(am: Any, lm: Any, ranges: Any) -> Any:
        tensors = all(isinstance(t, Tensor) for t in (am, lm, ranges))
        if not tensors or torch.jit.is_tracing():
            return original(am, lm, ranges)
        check_pruning_form(am, lm, ranges)
        sites = Sites(ranges)
        return (
            DeferredJoint(Table(am, by_symbol=False), sites, _report_materialised),
            DeferredJoint(Table(lm, by_symbol=True), sites, _report_materialised),
        )

    return do_rnnt_pruning


def _routed_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def rnnt_loss_pruned(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        logits = given.arguments["logits"]
        if isinstance(logits, DeferredJoint) and _applied is not None:
            options = _applied.options
            reason = routed_loss.why_not(logits)
            if reason is None:
                loss = routed_loss.compute(
                    logits,
                    given.arguments,
                    workspace_bytes=options.workspace_bytes,
                    adjoint_tolerance=options.adjoint_tolerance,
                    counters=_counters.tiles,
                    observer=current_observer(),
                )
                _counters.losses_routed += 1
                return loss
            given.arguments["logits"] = logits.materialise(reason)
        _counters.losses_dense += 1
        return original(*given.args, **given.kwargs)

    return rnnt_loss_pruned


def _function_apply(original: Any) -> classmethod[Any, Any, Any]:
    """``torch.autograd.Function.apply`` that is given tensors, as custom functions expect.

    It does not ask ``__torch_function__``: a stand-in would pass as an opaque object, and the
    custom backward would silently be lost.
    """

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if original is _MISSING:  # torch 1.13 inherits it
            inner = super(torch.autograd.Function, cls).apply
        else:
            inner = original.__get__(None, cls)
        given = [a.materialise(cls.__name__) if isinstance(a, DeferredJoint) else a for a in args]
        return inner(*given, **kwargs)

    return classmethod(apply)


def _report_materialised(operation: str) -> None:
    if operation not in _counters.materialised:
        logging.warning(
            "panda: %s cannot be recorded; the joiner's [B, T, s_range, ...] tensor is computed "
            "as without PANDA (same result, ordinary memory); said once",
            operation,
        )
    _counters.materialised[operation] = _counters.materialised.get(operation, 0) + 1
