"""Checks of what the tiled simple loss is given, before any work."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.source import LogitSource

_PLAIN = (torch.float32, torch.float64)
_ROUNDED = (torch.float16, torch.bfloat16, torch.float32)


def check_projections(
    am: tuple[Tensor, Tensor, Tensor | None],
    lm: tuple[Tensor, Tensor, Tensor | None],
    symbols: Tensor,
    head_dtype: torch.dtype | None,
) -> None:
    """Refuse inputs, weights and biases that do not fit each other or the symbols.

    Args:
      am: `[B, T, D_am]`, `[C, D_am]` and `[C]` or None.
      lm: `[B, S+1, D_lm]`, `[C, D_lm]` and `[C]` or None.
      symbols: `[B, S]`.
      head_dtype: dtype that the projections' operands are rounded to, or None.

    Raises:
      ValueError: a shape or a device.
      TypeError: a dtype.
    """
    if head_dtype is not None and head_dtype not in _ROUNDED:
        raise TypeError(f"head_dtype: got {head_dtype}, expected None or {_either(_ROUNDED)}")
    _check_shapes("am", "[B, T, D_am]", *am)
    _check_shapes("lm", "[B, S+1, D_lm]", *lm)
    for name, projection in (("am", am), ("lm", lm)):
        for part, tensor in zip(("input", "weight", "bias"), projection):
            if tensor is not None:
                _check_dtype(f"{name}_{part}", tensor, am[0].dtype, head_dtype)
                _check_device(f"{name}_{part}", tensor, am[0])
    _check_device("symbols", symbols, am[0])
    B, states, C = am[0].shape[0], lm[0].shape[1], am[1].shape[0]
    if lm[0].shape[0] != B:
        raise ValueError(
            f"lm_input: got {lm[0].shape[0]} utterances, expected am_input's {B}, as [B, S+1, D_lm]"
        )
    if lm[1].shape[0] != C:
        raise ValueError(f"lm_weight: got {lm[1].shape[0]} classes, expected am_weight's {C}")
    if tuple(symbols.shape) != (B, states - 1):
        raise ValueError(
            f"symbols: got shape {tuple(symbols.shape)}, expected [B, S] = [{B}, {states - 1}] "
            f"for lm_input of shape {tuple(lm[0].shape)}"
        )


def check_sources(am: LogitSource, lm: LogitSource, symbols: Tensor) -> None:
    """Refuse sources that do not fit each other or the symbols.

    Args:
      am, lm: of `[B, T, C]` and `[B, S+1, C]`; the parts of each fit each other.
      symbols: `[B, S]`.

    Raises:
      ValueError: a shape or a device.
      TypeError: a dtype.
    """
    if am.dtype not in _PLAIN:
        raise TypeError(f"am: got {am.dtype}, expected {_either(_PLAIN)}; pass am.float()")
    if lm.dtype != am.dtype:
        raise TypeError(f"lm: got {lm.dtype}, expected am's {am.dtype}; convert one of them")
    for name, device in (("lm", lm.device), ("symbols", symbols.device)):
        if device != am.device:
            raise ValueError(f"{name}: got device {device}, expected am's {am.device}")
    if 0 in (am.utterances, am.rows, am.classes):
        raise ValueError(f"am: got {am}, expected [B, T, C], none of them 0")
    expected = (am.utterances, lm.rows - 1)
    if (lm.utterances, lm.classes) != (am.utterances, am.classes) or lm.rows == 0:
        raise ValueError(
            f"lm: got {lm}, expected [B, S+1, C] = [{am.utterances}, S+1, {am.classes}] for am of "
            f"{am}"
        )
    if tuple(symbols.shape) != expected:
        raise ValueError(
            f"symbols: got shape {tuple(symbols.shape)}, expected [B, S] = {list(expected)} for "
            f"lm of {lm}"
        )


def _check_shapes(
    name: str, expected: str, input: Tensor, weight: Tensor, bias: Tensor | None
) -> None:
    if input.dim() != 3 or 0 in input.shape[:2]:
        raise ValueError(
            f"{name}_input: got shape {tuple(input.shape)}, expected {expected}, none of them 0"
        )
    if weight.dim() != 2 or weight.shape[1] != input.shape[2] or weight.shape[0] == 0:
        raise ValueError(
            f"{name}_weight: got shape {tuple(weight.shape)}, expected [C, {input.shape[2]}], "
            f"C >= 1, for {name}_input of shape {tuple(input.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{name}_bias: got shape {tuple(bias.shape)}, expected [{weight.shape[0]}] or None"
        )


def _check_dtype(
    name: str, tensor: Tensor, dtype: torch.dtype, head_dtype: torch.dtype | None
) -> None:
    if head_dtype is None and tensor.dtype not in _PLAIN:
        raise TypeError(
            f"{name}: got {tensor.dtype}, expected {_either(_PLAIN)}; pass {name}.float(), or "
            f"head_dtype to round the projections' operands as autocast does"
        )
    if head_dtype is None and tensor.dtype != dtype:
        raise TypeError(f"{name}: got {tensor.dtype}, expected am_input's {dtype}; convert one")
    if head_dtype is not None and tensor.dtype not in _ROUNDED:
        raise TypeError(
            f"{name}: got {tensor.dtype} with head_dtype={head_dtype}, expected "
            f"{_either(_ROUNDED)}; leave head_dtype out, as autocast leaves float64 alone"
        )


def _check_device(name: str, tensor: Tensor, am_input: Tensor) -> None:
    if tensor.device != am_input.device:
        raise ValueError(
            f"{name}: got device {tensor.device}, expected am_input's {am_input.device}"
        )


def _either(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype) for dtype in dtypes)
