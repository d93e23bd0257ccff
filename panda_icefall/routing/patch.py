"""``apply`` and ``revert``: replace k2's functions, put them back, and say what they did."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from panda_icefall.routing.applied import Applied
from panda_icefall.routing.finding_projections import find_ctc_heads, find_projections
from panda_icefall.routing.module_calls import forget_refusals
from panda_icefall.routing.non_finite import forget_non_finite, non_finite_findings
from panda_icefall.routing.replaced import Options, RoutingState
from panda_icefall.routing.status import RoutingCounters, Status

__all__ = [
    "apply",
    "counters",
    "is_applied",
    "patched",
    "recording_projections",
    "replace_awaited",
    "reset_counters",
    "revert",
    "status",
    "suspended",
]

_applied: Applied | None = None
_state = RoutingState()
_other_names: set[tuple[str, str]] = set()  # see warn_of_other_names


def apply(
    model: nn.Module | None = None,
    *,
    workspace_mib: float | None = None,
    adjoint_tolerance: float | None = None,
    engine: str = "auto",
    projections: Mapping[str, str] | None = None,
    strict: bool = False,
    ctc: bool = False,
    recursion: str = "auto",
) -> None:
    """Route the transducer losses of this process, pruned and simple, through tiles of classes.

    Call it once, before the first training step::

        panda_icefall.apply(model, strict=True)
        train(model)  # as it is; it calls k2.do_rnnt_pruning() and the losses of k2
        print(panda_icefall.status())
        panda_icefall.revert()

    ``do_rnnt_pruning``, ``rnnt_loss_pruned``, ``rnnt_loss_smoothed``, ``rnnt_loss_simple`` and
    ``rnnt_loss`` are replaced in ``k2`` and ``fast_rnnt``, where they are installed, and in
    ``panda_icefall.rnnt``; so are ``torchaudio.functional.rnnt_loss`` and
    ``optimized_transducer.transducer_loss``. A second call changes the options, and adds the
    projections and joiners of its model.

    The model's own code runs unchanged, on objects that record what it does to them. They are no
    ``torch.Tensor``, and ``isinstance`` says so. What in torch needs real tensors gets them: custom
    autograd functions, scripted functions, DDP and FSDP (its first kind; modules of FSDP2 stay
    recorded). A module that raises on a recorded argument runs again on the tensor, and that is
    logged.

    Not reached:

    - Functions of k2 that were bound by name before, as by ``from k2 import rnnt_loss_pruned``.
      They are logged, by module and name.
    - The ``apply`` of a custom autograd function that was bound before.
    - Hooks of modules that look for tensors: they do not see recorded ones. Logged once.
    - Other losses; CTC is reached where ``ctc=True`` asks for it.
    - CUDA graphs: a loss inside a capture is refused, as it reads values back from the device.

    Args:
      model: until ``revert`` its ``simple_am_proj`` and ``simple_lm_proj``, with or without a
        suffix, or ESPnet's ``am_proj`` and ``lm_proj``, are recorded, so that the simple loss needs
        no am and lm of all classes. So is its ``joiner``, or ``joint``, while the model's forward
        runs, for the losses of the full lattice. None: the simple loss is computed in tiles from
        the am and lm that it is given, and a full lattice from its logits, by the host.
      workspace_mib: upper bound of a tile's scratch, in MiB. None: by the caches of the device, see
        ``panda_icefall.normalizer.auto_workspace_bytes``.
      adjoint_tolerance: share of the absolute adjoint mass that backward may leave out, in
        ``[0, 1)``; None: half the eps of the accumulation dtype. 0: none.
      engine: "torch", "triton" or "auto": Triton's kernels on CUDA where it is installed (they need
        a C compiler there), else torch.
      projections: ``{"am": NAME, "lm": NAME, "ctc": NAME}``, or some of them, where the model's
        projections have other names. NAME is a module's path in the model, or the last parts of it.
      strict: raise PandaError, with the reason, at the first loss that would be computed as without
        PANDA.
      ctc: route ``torch.nn.functional.ctc_loss`` too, where its log-probs come from a recorded
        ``ctc_output`` of the model: only those of each utterance's own labels and the blank are
        computed. What else reads the head's output gets it as an ordinary tensor, said once.
      recursion: over the lattice: "k2" for k2's own, in float32 for float32 arcs, "exact" for the
        one in float64, or "auto", see ``panda_icefall.lattice.is_k2_chosen``.

    Raises:
      ValueError: an option is out of range, or ``projections`` names none of the model's modules.
      MissingEngineError: Triton or k2 is asked for and not installed.
      TypeError: model is no module, or ``projections`` no mapping of names.
      PandaError: a function to replace is missing.
      UnknownSignatureError: a function to replace has other parameters than those known.
    """
    global _applied
    _check_model(model)
    options = Options.of(
        workspace_mib, adjoint_tolerance, engine, projections, strict, ctc, recursion
    )
    if model is not None and projections is not None:  # refused before anything is replaced
        find_projections(model, projections)
        find_ctc_heads(model, projections)
    if _applied is None:
        _applied = Applied(_state, _other_names)
        reset_counters()
    else:
        _applied.replace_awaited()
    _state.options = options
    _applied.route_ctc(options.routes_ctc)
    if model is not None:
        _applied.search_again(model)
        _applied.record_model(model)


def _check_model(model: Any) -> None:
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a torch.nn.Module or None; options are "
            "given by name, as in apply(workspace_mib=64)"
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
    added = applied.record_model(model)
    try:
        yield
    finally:
        applied.forget(added)


def revert() -> None:
    """Put the originals back; does nothing when not applied. Counters stay readable.

    A replacement that somebody else has wrapped or replaced since is left alone, with a warning.
    """
    global _applied
    if _applied is not None:
        _applied.put_back()
    forget_refusals()
    _state.said.clear()
    _applied = None
    _state.options = None
    _state.unrecorded.clear()


def replace_awaited() -> None:
    """Where applied, replace the losses of hosts that have been imported since: torchaudio's."""
    if _applied is not None:
        _applied.replace_awaited()


@contextmanager
def patched(
    model: nn.Module | None = None,
    *,
    workspace_mib: float | None = None,
    adjoint_tolerance: float | None = None,
    engine: str = "auto",
    projections: Mapping[str, str] | None = None,
    strict: bool = False,
    ctc: bool = False,
    recursion: str = "auto",
) -> Iterator[None]:
    """``apply`` for the enclosed block; afterwards as before, also when already applied.

    Args and errors are those of ``apply``; the projections are recorded in the block only.
    """
    _check_model(model)
    was_applied, before = _applied is not None, _state.options
    apply(
        workspace_mib=workspace_mib,
        adjoint_tolerance=adjoint_tolerance,
        engine=engine,
        projections=projections,
        strict=strict,
        ctc=ctc,
        recursion=recursion,
    )
    try:
        with contextlib.nullcontext() if model is None else recording_projections(model):
            yield
    finally:
        if not was_applied:
            revert()
        elif _applied is not None:
            _state.options = before
            _applied.route_ctc(before is not None and before.routes_ctc)


@contextmanager
def suspended() -> Iterator[None]:
    """The originals in place for the enclosed block (the dense arm of a comparison)."""
    with contextlib.nullcontext() if _applied is None else _applied.suspended():
        yield


def status() -> Status:
    """What is replaced now, and totals since ``apply`` (or ``reset_counters``)."""
    replacements = [] if _applied is None or _applied.is_suspended else _applied.replacements
    return _state.counters.snapshot(
        tuple(replacement.full_name for replacement in replacements),
        tuple(map(str, non_finite_findings())),
    )


def is_applied() -> bool:
    """Whether the functions are replaced now."""
    return _applied is not None and not _applied.is_suspended


def counters() -> RoutingCounters:
    """The totals that grow."""
    return _state.counters


def reset_counters() -> None:
    """Set all totals to zero."""
    _state.counters.reset()
    forget_non_finite()
