"""``apply`` / ``revert``: put the recording functions in k2's place and count what they did."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from panda_icefall.routing.finding_projections import (
    find_projections,
    near_names,
    unrecordable_projections,
)
from panda_icefall.routing.hosts import (
    SIMPLE_LOSSES,
    bindings_elsewhere,
    host_functions,
    patched_module,
)
from panda_icefall.routing.interceptions import interceptions
from panda_icefall.routing.module_calls import forget_refusals
from panda_icefall.routing.module_hooks import forget_blind_hooks
from panda_icefall.routing.projection_calls import RecordedProjection
from panda_icefall.routing.replaced import (
    Options,
    RoutingState,
    recording_pruning,
    routed_pruned_loss,
    simple_loss_in_tiles,
)
from panda_icefall.routing.replacements import Replacement
from panda_icefall.routing.status import RoutingCounters, Status

__all__ = [
    "apply",
    "patched",
    "patched_module",
    "recording_projections",
    "reset_counters",
    "revert",
    "status",
    "suspended",
]

_REPLACED: dict[str, Any] = {
    "do_rnnt_pruning": recording_pruning,
    "rnnt_loss_pruned": routed_pruned_loss,
    "rnnt_loss_smoothed": simple_loss_in_tiles,
    "rnnt_loss_simple": simple_loss_in_tiles,
}


@dataclass
class _Applied:
    """What is replaced now.

    Attributes:
      replacements: in the order in which they were installed.
      has_simple_loss: whether a smoothed or simple loss is among them.
      is_suspended: whether the originals are back for a while.
    """

    replacements: list[Replacement | RecordedProjection]
    has_simple_loss: bool
    is_suspended: bool = False


_applied: _Applied | None = None
_state = RoutingState()
_looked_at: set[str] = set()
_said_bindings: set[tuple[str, str]] = set()


def apply(
    model: nn.Module | None = None,
    *,
    workspace_mib: float | None = None,
    adjoint_tolerance: float | None = None,
    engine: str = "auto",
    projections: Mapping[str, str] | None = None,
    strict: bool = False,
) -> None:
    """Route the transducer losses of this process, pruned and simple, through tiles of classes.

    Replaces ``do_rnnt_pruning``, ``rnnt_loss_pruned``, ``rnnt_loss_smoothed`` and
    ``rnnt_loss_simple`` (these two where there are any) in the module ``k2`` where it is installed,
    else in ``panda_icefall.losses.k2_functions``, and in ``fast_rnnt`` where that is installed. A
    second call only changes the options, and adds its model's projections. While applied, what in
    torch takes tensors without asking ``__torch_function__`` (custom functions, scripted functions,
    DDP and FSDP) is given them; a module that raises on a recorded argument runs again on the
    tensor, with a line in the log.

    What it does not reach: names bound before, as by ``from k2 import rnnt_loss_pruned`` (which is
    logged, by module and name) or the ``apply`` of a custom function; other losses. What a joiner
    gets, and what a recorded projection gives, is no ``torch.Tensor``: ``isinstance`` says so.
    Module hooks that look for tensors pass it by, which is logged once.

    Args:
      model: has projections called ``simple_am_proj`` and ``simple_lm_proj``, with or without a
        suffix; until ``revert`` they are recorded, so that the simple loss never sees am and lm.
        None: it computes in tiles from the am and lm it is given.
      workspace_mib: upper bound of a tile's scratch, in MiB. None: chosen from the caches and the
        free memory of the device, see ``panda_icefall.normalizer.auto_workspace_bytes``.
      adjoint_tolerance: share of the absolute adjoint mass that backward may leave out, in
        ``[0, 1)``; None: half the eps of the accumulation dtype. 0: none.
      engine: of the pruned loss, "torch", "triton" or "auto": Triton's kernels on CUDA where it is
        installed (they need a C compiler there), else torch.
      projections: ``{"am": NAME, "lm": NAME}``, or one of them, where the model calls its
        projections otherwise; a name is a module's path in the model, or its last parts.
      strict: raise PandaError, with the reason, at the first loss that would be computed as without
        PANDA.

    Raises:
      ValueError: an option is out of range, or ``projections`` names none of the model's modules.
      MissingEngineError: Triton is asked for and not installed.
      TypeError: model is no module, or ``projections`` no mapping of names.
      PandaError: a function to replace is missing.
      UnknownSignatureError: a function to replace has other parameters than those known.
    """
    global _applied
    _check_model(model)
    options = Options.of(workspace_mib, adjoint_tolerance, engine, projections, strict)
    if model is not None and projections is not None:
        find_projections(model, projections)  # refused before anything is replaced
    if _applied is None:
        _applied = _newly_applied()
    _state.options = options
    if model is not None:
        _record_projections(_applied, model)


def _check_model(model: Any) -> None:
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a torch.nn.Module or None; options are "
            "given by name, as in apply(workspace_mib=64)"
        )


def _newly_applied() -> _Applied:
    functions = host_functions()
    replacements: list[Replacement | RecordedProjection] = [
        *(Replacement.of(m, name, _REPLACED[name](f, _state)) for m, name, f in functions),
        *interceptions(),
    ]
    reset_counters()
    _looked_at.clear()
    _say_bindings_elsewhere(functions)
    for replacement in replacements:
        replacement.install()
    return _Applied(replacements, any(name in SIMPLE_LOSSES for _, name, _ in functions))


def _say_bindings_elsewhere(functions: list[tuple[ModuleType, str, Any]]) -> None:
    """Log which modules hold an original by a name of their own; each once."""
    names = {id(function): f"{module.__name__}.{name}" for module, name, function in functions}
    owners = {__name__.partition(".")[0], *(m.__name__.partition(".")[0] for m, _, _ in functions)}
    for module, name, full_name in bindings_elsewhere(names, owners):
        if (module, name) not in _said_bindings:
            _said_bindings.add((module, name))
            logging.warning(
                "panda: %s.%s is %s from before apply(), and calls of it are not routed; call "
                "%s() instead, or import the name after apply()",
                module, name, full_name, full_name,
            )  # fmt: skip


def _record_projections(applied: _Applied, model: Any) -> list[RecordedProjection]:
    """Record a model's projections, those that are not recorded already."""
    if not applied.has_simple_loss:
        return []
    names = None if _state.options is None else _state.options.projections
    found = find_projections(model, names) if isinstance(model, nn.Module) else {}
    # Of a model in DDP; no attribute of the recipe's own is read, which may be computed.
    name = type(getattr(model, "_modules", {}).get("module", model)).__name__
    if name not in _looked_at and isinstance(model, nn.Module):
        _looked_at.add(name)
        _say_what_is_not_recorded(model, name, bool(found))
    recorded = {r.module for r in applied.replacements if isinstance(r, RecordedProjection)}
    added = [
        RecordedProjection(
            module, path.rpartition(".")[2], f"{path}.forward", _state.report_projection
        )
        for path, module in found.items()
        if module not in recorded
    ]
    applied.replacements += added
    if not applied.is_suspended:
        for replacement in added:
            replacement.install()
    return added


def _say_what_is_not_recorded(model: nn.Module, name: str, has_found: bool) -> None:
    if not has_found:
        logging.warning(
            "panda: no simple_am_proj and simple_lm_proj in %s: its simple loss, if it has one, is "
            "computed in tiles from am and lm as they are. If it has such projections under other "
            'names, say which: projections={"am": NAME, "lm": NAME} or --panda-projections '
            "am=NAME,lm=NAME; candidates: %s; said once",
            name,
            ", ".join(near_names(model)) or "none",
        )
    for path in unrecordable_projections(model):
        logging.warning(
            "panda: %s of %s has no weight [C, D] of its own and is not recorded: the simple loss "
            "is computed in tiles from the tensor that it gives; said once",
            path,
            name,
        )


@contextmanager
def recording_projections(model: Any) -> Iterator[None]:
    """Record the simple loss's projections of ``model`` in the enclosed block, where applied.

    Args:
      model: what a recipe's ``compute_loss`` was given. Does nothing while not applied or
        suspended, or where the projections are recorded already.
    """
    applied = _applied
    if applied is None or applied.is_suspended:
        yield
        return
    added = _record_projections(applied, model)
    try:
        yield
    finally:
        for replacement in added:
            replacement.remove()
        applied.replacements = [r for r in applied.replacements if r not in added]


def revert() -> None:
    """Put the originals back; does nothing when not applied. Counters stay readable.

    A replacement that somebody else has wrapped or displaced since is left alone, with a warning.
    """
    global _applied
    if _applied is None:
        return
    for replacement in _applied.replacements:
        if not replacement.remove() and not _applied.is_suspended:
            logging.warning(
                "panda: %s was replaced by something else after apply(); left as it is",
                replacement.full_name,
            )
    _applied = None
    _state.options = None
    forget_blind_hooks()
    forget_refusals()


@contextmanager
def patched(model: nn.Module | None = None, **options: Any) -> Iterator[None]:
    """``apply`` for the enclosed block; afterwards as before, also when already applied.

    Args:
      model, options: as of ``apply``; the projections are recorded in the block only.
    """
    _check_model(model)
    was_applied, before = _applied is not None, _state.options
    apply(**options)
    try:
        with contextlib.nullcontext() if model is None else recording_projections(model):
            yield
    finally:
        if not was_applied:
            revert()
        elif _applied is not None:
            _state.options = before


@contextmanager
def suspended() -> Iterator[None]:
    """The originals in place for the enclosed block (the dense arm of a comparison)."""
    applied = _applied
    if applied is None:
        yield
        return
    displaced = [replacement for replacement in applied.replacements if not replacement.remove()]
    before, applied.is_suspended = applied.is_suspended, True
    try:
        yield
    finally:
        applied.is_suspended = before
        if _applied is applied:  # not reverted inside
            for replacement in applied.replacements:
                if replacement not in displaced:
                    replacement.install()


def status() -> Status:
    """What is replaced now, and totals since ``apply`` (or ``reset_counters``)."""
    replacements = [] if _applied is None or _applied.is_suspended else _applied.replacements
    return _state.counters.snapshot(tuple(replacement.full_name for replacement in replacements))


def reset_counters() -> None:
    """Set all totals to zero."""
    _state.counters = RoutingCounters()
