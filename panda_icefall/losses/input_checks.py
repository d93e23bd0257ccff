"""Checks shared by the losses: symbols, ranges, boundary and the options, before any work."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.banded import RNNT_TYPES
from panda_icefall.lattice.validation import (
    HALVES,
    boundary_error,
    boundary_violations,
    check_boundary_form,
)

REDUCTIONS = ("none", "mean", "sum")
_WIDE = (torch.float32, torch.float64)


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
      symbols: int64 `[B, S]`, ids in `[0, num_classes)`, the padding included.
      ranges: int64 `[B, T, s_range]`, consecutive states in `[0, S]` at every frame; None for a
        loss over the full lattice.
      termination_symbol: the blank, in `[0, num_classes)`.
      boundary: int64 `[B, 4]` rows `s_begin, t_begin, s_end, t_end`, or None.
      rnnt_type: `regular`, `modified` or `constrained`; the latter two need `T >= S`, of each
        utterance where there is a boundary: one that is too short has no path, its loss is inf.
      reduction: `none`, `mean` or `sum`.
      num_classes: C.
      T: frames; needed only where `ranges` is None.

    Raises:
      ValueError: if a shape, a device, a value or an option does not fit.
      TypeError: if an index tensor is not int64, or `termination_symbol` is not an int.

    The values of all tensors are judged in one device sync.
    """
    check_options(rnnt_type, reduction)
    check_termination_symbol(termination_symbol, num_classes)
    if symbols.ndim != 2:
        raise ValueError(f"symbols: got shape {tuple(symbols.shape)}, expected [B, S]")
    _check_int64("symbols", symbols)
    B, S = symbols.shape
    if ranges is not None:
        _check_ranges_form(ranges, symbols)
        T = ranges.shape[1]
    assert T is not None
    if rnnt_type != "regular" and boundary is None and T < S:
        raise ValueError(
            f"rnnt_type: got {rnnt_type!r} with T={T} < S={S}, expected T >= S as each symbol "
            "takes a frame; drop the utterances that are too short or use 'regular'"
        )
    if boundary is not None:
        check_boundary_form(boundary, B, symbols.device)

    flags = [((symbols < 0) | (symbols >= num_classes)).any()]
    flags.append(flags[0] if ranges is None else _ranges_violations(ranges, S).any())
    flags.append(flags[0] if boundary is None else boundary_violations(boundary, S, T).any())
    bad_symbols, bad_ranges, bad_boundary = torch.stack(flags).tolist()
    if bad_symbols:
        raise _symbols_error(symbols, num_classes)
    if ranges is not None and bad_ranges:
        raise _ranges_error(ranges, S)
    if boundary is not None and bad_boundary:
        raise boundary_error(boundary, S, T)


def check_options(rnnt_type: str, reduction: str | None) -> None:
    """Refuse an unknown `rnnt_type` or `reduction`.

    Raises:
      ValueError: naming the known ones.
    """
    if rnnt_type not in RNNT_TYPES:
        raise ValueError(f"rnnt_type: got {rnnt_type!r}, expected one of {', '.join(RNNT_TYPES)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, expected one of {', '.join(REDUCTIONS)}")


def check_termination_symbol(termination_symbol: int, num_classes: int) -> None:
    """Refuse a `termination_symbol` that is no class.

    Raises:
      ValueError: if it lies outside `[0, num_classes)`.
      TypeError: if it is not an int.
    """
    if not isinstance(termination_symbol, int):
        raise TypeError(
            f"termination_symbol: got {type(termination_symbol).__name__}, expected int; "
            "call int() on it"
        )
    if not 0 <= termination_symbol < num_classes:
        raise ValueError(
            f"termination_symbol: got {termination_symbol}, expected 0 <= id < C={num_classes}"
        )


def check_floats(name: str, values: Tensor, shape: str, *, takes_half: bool = False) -> None:
    """Refuse `values` that are no floats of the dimensions that `shape` spells.

    Args:
      name: of the argument.
      values: float32 or float64, or float16 or bfloat16 where the caller widens them.
      shape: such as `[B, T, C]`.
      takes_half: whether the caller does.

    Raises:
      ValueError: if the number of dimensions differs.
      TypeError: if the dtype is another one.
    """
    if values.ndim != shape.count(",") + 1:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected {shape}")
    if values.dtype not in _WIDE + (HALVES if takes_half else ()):
        halves = "torch.float16, torch.bfloat16, " if takes_half else ""
        raise TypeError(
            f"{name}: got {values.dtype}, expected {halves}torch.float32 or torch.float64; "
            f"pass {name}.float()"
        )


def check_logits(lm: Tensor, am: Tensor, symbols: Tensor, *, takes_half: bool = False) -> None:
    """Refuse unnormalised log-probs that do not fit each other or the symbols.

    Args:
      lm: `[B, S+1, C]`, float32 or float64.
      am: `[B, T, C]`, of the dtype of `lm`.
      symbols: `[B, S]`.
      takes_half: as in `check_floats`.

    Raises:
      ValueError: a shape or a device.
      TypeError: a dtype.
    """
    check_floats("lm", lm, "[B, S+1, C]", takes_half=takes_half)
    check_floats("am", am, "[B, T, C]", takes_half=takes_half)
    if lm.dtype != am.dtype:
        raise TypeError(f"am: got {am.dtype}, expected lm's {lm.dtype}; convert one of them")
    if lm.shape[0] != am.shape[0] or lm.shape[2] != am.shape[2] or lm.shape[1] < 1:
        raise ValueError(
            f"lm: got shape {tuple(lm.shape)}, expected [B, S+1, C] = "
            f"[{am.shape[0]}, S+1, {am.shape[2]}] for am of shape {tuple(am.shape)}"
        )
    for name, tensor in (("am", am), ("symbols", symbols)):
        if tensor.device != lm.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected lm's {lm.device}")
    if tuple(symbols.shape) != (lm.shape[0], lm.shape[1] - 1):
        raise ValueError(
            f"symbols: got shape {tuple(symbols.shape)}, expected [B, S] = "
            f"[{lm.shape[0]}, {lm.shape[1] - 1}] for lm of shape {tuple(lm.shape)}"
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


def _ranges_violations(ranges: Tensor, S: int) -> Tensor:
    """Frames whose states leave `[0, S]` or are not consecutive, bool `[B, T]`."""
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


def _ranges_error(ranges: Tensor, S: int) -> ValueError:
    b, t = _ranges_violations(ranges, S).nonzero()[0].tolist()
    return ValueError(
        f"ranges: got {ranges[b, t].tolist()} for utterance b={b} at t={t}, expected "
        f"{ranges.shape[2]} consecutive states in 0..S={S}; use get_rnnt_prune_ranges"
    )
