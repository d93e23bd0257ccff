"""Checks of a lattice before any work, and what the host learns by them, in one transfer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.validation import check_boundary_form, check_enough_frames
from panda_icefall.losses.host_values import (
    Boundary,
    boundary_of_step,
    check_inside,
    on_host,
    remember_step,
    rows_of,
)
from panda_icefall.losses.spec import LatticeSpec, check_numbers, check_options

__all__ = [
    "KnownLattice",
    "check_form",
    "check_lattice_inputs",
    "check_spec",
    "check_values",
    "ranges_error",
    "ranges_violations",
]


@dataclass(frozen=True)
class KnownLattice:
    """What the host knows of a lattice that was checked.

    Attributes:
      boundary: B rows; those of the whole lattice where none was given.
      count: how many of the sites asked about are True; 0 where none were.
    """

    boundary: Boundary
    count: int


@opaque
def check_lattice_inputs(
    symbols: Tensor,
    ranges: Tensor | None,
    termination_symbol: int,
    boundary: Tensor | None,
    rnnt_type: str,
    reduction: str | None,
    *,
    num_classes: int,
    T: int | None = None,
) -> None:
    """Refuse lattice inputs that no loss can be computed from, saying what is wrong and where.

    Args:
      symbols, ranges, termination_symbol, boundary, rnnt_type, reduction: as in ``LatticeSpec``.
      num_classes, T: as in ``check_spec``.

    Raises:
      ValueError, TypeError: as ``check_spec``.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, ranges=ranges,
        boundary=boundary, rnnt_type=rnnt_type, reduction=reduction,
    )  # fmt: skip
    check_spec(spec, num_classes, T)


def check_spec(spec: LatticeSpec, num_classes: int, T: int | None = None) -> KnownLattice:
    """Refuse a lattice that no loss can be computed from, saying what is wrong and where.

    Args:
      spec: the types ``modified`` and ``constrained`` need ``T >= S``, of each utterance where
        there is a boundary: one that is too short has no path.
      num_classes: C.
      T: frames; needed only where there are no ranges.

    Raises:
      ValueError: a shape, a device, a value or an option.
      TypeError: an index tensor is not int64, or ``termination_symbol`` is not an int.
      RuntimeError: a CUDA graph is being captured.

    The values of all tensors are read in one device sync.
    """
    check_form(spec, num_classes, T)
    return check_values(spec, num_classes, T)


def check_form(spec: LatticeSpec, num_classes: int, T: int | None = None) -> None:
    """The part of ``check_spec`` that reads no values; arguments and errors are the same."""
    symbols, ranges, boundary = spec.symbols, spec.ranges, spec.boundary
    check_options(spec.rnnt_type, spec.reduction)
    check_numbers(spec)
    _check_termination_symbol(spec.termination_symbol, num_classes)
    if symbols.ndim != 2:
        raise ValueError(f"symbols: got shape {tuple(symbols.shape)}, expected [B, S]")
    _check_int64("symbols", symbols)
    B, S = symbols.shape
    if ranges is not None:
        _check_ranges_form(ranges, symbols)
    frames = _frames(spec, T)
    if not spec.is_regular and boundary is None and frames < S:
        raise ValueError(
            f"rnnt_type: got {spec.rnnt_type!r} with T={frames} < S={S}, expected T >= S as each "
            "symbol takes a frame; drop the utterances that are too short or use 'regular'"
        )
    if boundary is not None:
        check_boundary_form(boundary, B, symbols.device)


def check_values(
    spec: LatticeSpec,
    num_classes: int,
    T: int | None = None,
    *,
    counted: Tensor | None = None,
    follows: bool = False,
) -> KnownLattice:
    """The part of ``check_spec`` that reads values, in one device sync.

    Args:
      spec, num_classes, T: as there; ``check_form`` let them pass.
      counted: bool of any shape, whose Trues are counted in the same sync.
      follows: of the pruned loss, which follows the simple one in a step: what that has read of
        the same tensors is not read again.

    Raises:
      ValueError, RuntimeError: as ``check_spec``.
    """
    symbols, ranges, boundary, T = spec.symbols, spec.ranges, spec.boundary, _frames(spec, T)
    B, S = symbols.shape
    known = boundary_of_step(symbols, boundary, num_classes, T) if follows else None
    wanted: dict[str, Tensor] = {}
    if known is None:
        wanted["symbols"] = ((symbols < 0) | (symbols >= num_classes)).any()
    if ranges is not None:
        wanted["ranges"] = ranges_violations(ranges, S).any()
    if known is None and boundary is not None:
        wanted["boundary"] = boundary
    if counted is not None:
        wanted["counted"] = counted.sum()
    found = dict(zip(wanted, on_host(*wanted.values())))
    if any(found.get("symbols", ())):
        raise _symbols_error(symbols, num_classes)
    if ranges is not None and any(found["ranges"]):
        raise ranges_error(ranges, S)
    if known is None:
        known = [(0, 0, S, T)] * B
        if boundary is not None:
            known = rows_of(found["boundary"])
            check_inside(known, boundary, S, T)
        if not follows:
            remember_step(symbols, boundary, num_classes, T, known)
    if boundary is not None:
        check_enough_frames(known, spec.rnnt_type)
    return KnownLattice(known, 0 if counted is None else found["counted"][0])


def _frames(spec: LatticeSpec, T: int | None) -> int:
    frames = T if spec.ranges is None else spec.ranges.shape[1]
    assert frames is not None
    return frames


def _check_termination_symbol(termination_symbol: int, num_classes: int) -> None:
    if not isinstance(termination_symbol, int):
        raise TypeError(
            f"termination_symbol: got {type(termination_symbol).__name__}, expected int; "
            "call int() on it"
        )
    if num_classes < 1:
        raise ValueError("logits: got no classes (C=0), expected 1 or more")
    if not 0 <= termination_symbol < num_classes:
        raise ValueError(
            f"termination_symbol: got {termination_symbol}, expected 0 <= id < C={num_classes}"
        )


def _check_int64(name: str, ids: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise TypeError(f"{name}: got {ids.dtype}, expected torch.int64; call {name}.long()")


def _check_ranges_form(ranges: Tensor, symbols: Tensor) -> None:
    B, S = symbols.shape
    if ranges.ndim != 3 or ranges.shape[0] != B or not 1 <= ranges.shape[2] <= S + 1:
        raise ValueError(
            f"ranges: got shape {tuple(ranges.shape)}, expected [B, T, s_range] = "
            f"[{B}, T, 1..{S + 1}] for symbols of shape {tuple(symbols.shape)}"
        )
    _check_int64("ranges", ranges)
    if ranges.device != symbols.device:
        raise ValueError(
            f"ranges: got device {ranges.device}, expected that of symbols, {symbols.device}"
        )


def ranges_violations(ranges: Tensor, S: int) -> Tensor:
    """Frames whose states leave ``[0, S]`` or are not consecutive, bool ``[B, T]``."""
    first = ranges[:, :, :1]
    s_range = ranges.shape[2]
    skips = (ranges - first != torch.arange(s_range, device=ranges.device)).any(dim=2)
    first = first.squeeze(2)
    return skips | (first < 0) | (first > S + 1 - s_range)


def _symbols_error(symbols: Tensor, num_classes: int) -> ValueError:
    b, s = ((symbols < 0) | (symbols >= num_classes)).nonzero()[0].tolist()
    return ValueError(
        f"symbols: got id {int(symbols[b, s])} for utterance b={b} at s={s}, "
        f"expected 0 <= id < C={num_classes}; pad with a class id"
    )


def ranges_error(ranges: Tensor, S: int) -> ValueError:
    """The error that names the first frame of ``ranges_violations``."""
    b, t = ranges_violations(ranges, S).nonzero()[0].tolist()
    return ValueError(
        f"ranges: got {ranges[b, t].tolist()} for utterance b={b} at t={t}, expected "
        f"{ranges.shape[2]} consecutive states in 0..S={S}; use get_rnnt_prune_ranges"
    )
