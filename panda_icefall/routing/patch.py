"""``apply`` / ``revert``: put the recording functions in k2's place and count what they did."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable

import torch
from torch import Tensor

from panda_icefall.normalizer import DEFAULT_WORKSPACE_BYTES
from panda_icefall.routing import routed_loss
from panda_icefall.routing.deferred import DeferredJoint
from panda_icefall.routing.errors import PandaError, UnknownSignatureError
from panda_icefall.routing.graph import Sites, Table
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


@dataclass
class _Applied:
    module: ModuleType
    originals: dict[str, Callable[..., Any]]
    replacements: dict[str, Callable[..., Any]]
    options: Options


_applied: _Applied | None = None
_counters = RoutingCounters()


def apply(
    workspace_mib: float = DEFAULT_WORKSPACE_BYTES / 2**20, adjoint_tolerance: float | None = None
) -> None:
    """Route the pruned RNN-T loss of this process through the selected normaliser.

    Replaces ``do_rnnt_pruning`` and ``rnnt_loss_pruned`` in the module ``k2`` where it is
    installed, else in ``panda_icefall.losses.k2_functions``. A second call only changes the
    options. What it does not reach: names imported by ``from k2 import rnnt_loss_pruned`` before,
    scripted (TorchScript) joiners, losses other than the pruned one.

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
    if not workspace_mib > 0:
        raise ValueError(f"workspace_mib: got {workspace_mib}, expected a number above 0")
    if adjoint_tolerance is not None and not 0 <= adjoint_tolerance < 1:
        raise ValueError(f"adjoint_tolerance: got {adjoint_tolerance}, expected 0 <= it < 1")
    options = Options(int(workspace_mib * 2**20), adjoint_tolerance)
    if _applied is not None:
        _applied.options = options
        return
    module = importlib.import_module("k2" if importlib.util.find_spec("k2") else STAND_IN)
    originals = {name: _checked(module, name) for name in _KNOWN_SIGNATURES}
    reset_counters()
    replacements = {
        "do_rnnt_pruning": _recording_pruning(originals["do_rnnt_pruning"]),
        "rnnt_loss_pruned": _routed_loss(originals["rnnt_loss_pruned"]),
    }
    _applied = _Applied(module, originals, replacements, options)
    for name, replacement in replacements.items():
        setattr(module, name, replacement)


def revert() -> None:
    """Put the originals back; does nothing when not applied. Counters stay readable.

    A replacement that somebody else has wrapped or displaced since is left alone, with a warning.
    """
    global _applied
    if _applied is None:
        return
    for name, replacement in _applied.replacements.items():
        if getattr(_applied.module, name, None) is replacement:
            setattr(_applied.module, name, _applied.originals[name])
        else:
            logging.warning(
                "panda: %s.%s was replaced by something else after apply(); left as it is",
                _applied.module.__name__,
                name,
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
    for name, original in applied.originals.items():
        setattr(applied.module, name, original)
    try:
        yield
    finally:
        for name, replacement in applied.replacements.items():
            setattr(applied.module, name, replacement)


def status() -> Status:
    """What is replaced now, and totals since ``apply`` (or ``reset_counters``)."""
    replaced = (
        ()
        if _applied is None
        else tuple(f"{_applied.module.__name__}.{name}" for name in _applied.replacements)
    )
    return _counters.snapshot(replaced)


def reset_counters() -> None:
    """Set all totals to zero."""
    global _counters
    _counters = RoutingCounters()


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
        _check_pruning(am, lm, ranges)
        sites = Sites(ranges)
        return (
            DeferredJoint(Table(am, by_symbol=False), sites, _report_materialised),
            DeferredJoint(Table(lm, by_symbol=True), sites, _report_materialised),
        )

    return do_rnnt_pruning


def _check_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> None:
    if am.dim() != 3:
        raise ValueError(f"am: got shape {tuple(am.shape)}, expected [B, T, encoder_dim]")
    B, T, _ = am.shape
    if lm.dim() != 3 or lm.shape[0] != B:
        raise ValueError(f"lm: got shape {tuple(lm.shape)}, expected [{B}, S + 1, decoder_dim]")
    if ranges.dim() != 3 or ranges.shape[:2] != (B, T):
        raise ValueError(f"ranges: got shape {tuple(ranges.shape)}, expected [{B}, {T}, s_range]")
    if ranges.dtype != torch.int64:
        raise TypeError(f"ranges: got {ranges.dtype}, expected torch.int64")


def _routed_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def rnnt_loss_pruned(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        logits = given.arguments["logits"]
        if isinstance(logits, DeferredJoint) and _applied is not None:
            options = _applied.options
            reason = routed_loss.why_not(logits, given.arguments)
            if reason is None:
                loss = routed_loss.compute(
                    logits,
                    given.arguments,
                    workspace_bytes=options.workspace_bytes,
                    adjoint_tolerance=options.adjoint_tolerance,
                    counters=_counters.tiles,
                )
                _counters.losses_routed += 1
                return loss
            given.arguments["logits"] = logits.materialise(reason)
        _counters.losses_dense += 1
        return original(*given.args, **given.kwargs)

    return rnnt_loss_pruned


def _report_materialised(operation: str) -> None:
    if operation not in _counters.materialised:
        logging.warning(
            "panda: %s cannot be recorded; the joiner's [B, T, s_range, ...] tensor is computed "
            "as without PANDA (same result, ordinary memory); said once",
            operation,
        )
    _counters.materialised[operation] = _counters.materialised.get(operation, 0) + 1
