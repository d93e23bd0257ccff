"""Checks of what the lattice recursion is given, before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dtypes import HALVES

RNNT_TYPES = ("regular", "modified", "constrained")
BOUNDARY_FIELDS = "[s_begin, t_begin, s_end, t_end]"
Numbers = Tensor | int


def widened(values: Tensor) -> Tensor:
    """float32 for half values, which hold no sum of log-probs; the gradient comes back in half."""
    return values.float() if values.dtype in HALVES else values


def check_boundary_form(boundary: Tensor, B: int, device: torch.device) -> None:
    """Refuse a boundary that is not int64 ``[B, 4]`` on ``device``; reads no values.

    Raises:
      ValueError: if the shape or the device does not fit.
      TypeError: if the dtype is not int64.
    """
    if tuple(boundary.shape) != (B, 4):
        raise ValueError(
            f"boundary: got shape {tuple(boundary.shape)}, expected [B, 4] = [{B}, 4] "
            f"of {BOUNDARY_FIELDS}"
        )
    if boundary.dtype != torch.int64:
        raise TypeError(f"boundary: got {boundary.dtype}, expected torch.int64; call .long()")
    if boundary.device != device:
        raise ValueError(
            f"boundary: got device {boundary.device}, expected {device}; call .to({str(device)!r})"
        )


def boundary_violations(boundary: Tensor, S: int, T: int) -> Tensor:
    """Rows of ``boundary`` that leave the ``(S, T)`` lattice: bool ``[B]``, not yet synced."""
    return ~is_inside_lattice(*boundary.unbind(1), S=S, T=T)


def is_inside_lattice(
    s_begin: Numbers, t_begin: Numbers, s_end: Numbers, t_end: Numbers, *, S: int, T: int
) -> Any:
    """Whether rows of a boundary lie in the ``(S, T)`` lattice: of tensors ``[B]``, or of ints."""
    inside = (s_begin >= 0) & (s_begin <= s_end) & (s_end <= S)
    return inside & (t_begin >= 0) & (t_begin <= t_end) & (t_end <= T)


def boundary_error(boundary: Tensor, S: int, T: int) -> ValueError:
    """The error that names the first row of ``boundary`` that leaves the ``(S, T)`` lattice."""
    b = int(boundary_violations(boundary, S, T).int().argmax())
    return ValueError(
        f"boundary: got {boundary[b].tolist()} for utterance b={b} as {BOUNDARY_FIELDS}, expected "
        f"0 <= s_begin <= s_end <= S={S} and 0 <= t_begin <= t_end <= T={T}; "
        "check the lengths of this utterance against the padded tensors"
    )


def check_recursion_inputs(px: Tensor, py: Tensor, boundary: Tensor | None) -> None:
    """Refuse what the recursion cannot run on; one device sync if there is a boundary.

    Args:
      px: float32 or float64 ``[B, S, T+1]`` (regular) or ``[B, S, T]`` (modified, constrained).
      py: ``[B, S+1, T]``, of the dtype of ``px``.
      boundary: int64 ``[B, 4]``, or None.

    Raises:
      ValueError: if a shape, a device or a boundary row does not fit.
      TypeError: if a dtype is not supported, or the two differ.
    """
    if px.ndim != 3:
        raise ValueError(
            f"px: got {px.ndim} dimensions {tuple(px.shape)}, expected 3: [B, S, T+1] (regular) "
            "or [B, S, T] (modified, constrained)"
        )
    B, S, T1 = px.shape
    if py.ndim != 3 or py.shape[:2] != (B, S + 1):
        raise ValueError(
            f"py: got shape {tuple(py.shape)}, expected [B, S+1, T] = [{B}, {S + 1}, T] "
            f"for px of shape {tuple(px.shape)}"
        )
    T = py.shape[2]
    if T1 not in (T, T + 1):
        raise ValueError(
            f"px: got {T1} frames for py with T={T}, expected T+1={T + 1} (regular) "
            f"or T={T} (modified, constrained)"
        )
    for name, arcs in (("px", px), ("py", py)):
        if arcs.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{name}: got {arcs.dtype}, expected torch.float32 or torch.float64; "
                f"call {name}.float() first"
            )
    if px.dtype != py.dtype:
        raise TypeError(f"py: got {py.dtype}, expected px's {px.dtype}; convert one of them")
    if px.device != py.device:
        raise ValueError(f"py: got device {py.device}, expected px's {px.device}; move one of them")
    if boundary is not None:
        _check_boundary(boundary, B, S, py.shape[2], px.device)


def check_band(
    target_logp: Tensor,
    blank_logp: Tensor,
    ranges: Tensor,
    S: int,
    boundary: Tensor | None,
    rnnt_type: str,
) -> None:
    """Refuse what the banded recursion cannot run on; one device sync if there is a boundary.

    Raises:
      ValueError: if a shape, a device, an option or a boundary row does not fit.
      TypeError: if a dtype is not supported.
    """
    check_rnnt_type(rnnt_type)
    if S < 0:
        raise ValueError(f"S: got {S}, expected the number of symbols, 0 or more")
    if ranges.ndim != 3 or ranges.shape[2] < 1:
        raise ValueError(
            f"ranges: got shape {tuple(ranges.shape)}, expected [B, T, s_range] with s_range >= 1"
        )
    if ranges.dtype != torch.int64:
        raise TypeError(f"ranges: got {ranges.dtype}, expected torch.int64; call ranges.long()")
    for name, logp in (("target_logp", target_logp), ("blank_logp", blank_logp)):
        check_site_shape(name, logp, ranges)
        if logp.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"{name}: got {logp.dtype}, expected torch.float32 or torch.float64; "
                f"call {name}.float() first"
            )
        if logp.device != ranges.device:
            raise ValueError(
                f"{name}: got device {logp.device}, expected that of ranges, {ranges.device}"
            )
    if target_logp.dtype != blank_logp.dtype:
        raise TypeError(
            f"blank_logp: got {blank_logp.dtype}, expected target_logp's {target_logp.dtype}; "
            "convert one of them"
        )
    if boundary is not None:
        B, T, _ = ranges.shape
        _check_boundary(boundary, B, S, T, ranges.device)


def check_rnnt_type(rnnt_type: str) -> None:
    """Refuse an unknown ``rnnt_type``.

    Raises:
      ValueError: naming the known ones.
    """
    if rnnt_type not in RNNT_TYPES:
        raise ValueError(f"rnnt_type: got {rnnt_type!r}, expected one of {', '.join(RNNT_TYPES)}")


def check_site_shape(name: str, logp: Tensor, ranges: Tensor) -> None:
    """Refuse log-probs of another shape than the ranges.

    Raises:
      ValueError: naming both shapes.
    """
    if logp.shape != ranges.shape:
        raise ValueError(
            f"{name}: got shape {tuple(logp.shape)}, expected that of ranges, "
            f"[B, T, s_range] = {list(ranges.shape)}"
        )


def _check_boundary(boundary: Tensor, B: int, S: int, T: int, device: torch.device) -> None:
    check_boundary_form(boundary, B, device)
    if bool(boundary_violations(boundary, S, T).any()):
        raise boundary_error(boundary, S, T)


def check_enough_frames(rows: Iterable[Sequence[int]], rnnt_type: str) -> None:
    """Refuse an utterance with fewer frames than symbols where each symbol takes a frame.

    k2 of 2025 refuses the batch too; in k2 1.23.4 its loss is inf.

    Args:
      rows: of a boundary, on the host.

    Raises:
      ValueError: naming the utterance.
    """
    if rnnt_type == "regular":
        return
    for b, (s_begin, t_begin, s_end, t_end) in enumerate(rows):
        if t_end - t_begin < s_end - s_begin:
            raise ValueError(
                f"boundary: got {[s_begin, t_begin, s_end, t_end]} for utterance b={b} as "
                f"{BOUNDARY_FIELDS} with rnnt_type={rnnt_type!r}, expected T >= S, "
                f"{t_end - t_begin} >= {s_end - s_begin}, as each symbol takes a frame; drop the "
                "utterances that are too short or use 'regular'"
            )
