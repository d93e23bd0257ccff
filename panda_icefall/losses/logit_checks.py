"""Checks of the unnormalised log-probs that a loss reads, before any work."""

from __future__ import annotations

from torch import Tensor

from panda_icefall.dtypes import HALVES, WIDE


def check_floats(name: str, values: Tensor, shape: str, *, takes_half: bool = False) -> None:
    """Refuse ``values`` that are no floats of the dimensions that ``shape`` spells.

    Args:
      name: of the argument.
      values: float32 or float64, or float16 or bfloat16 where the caller widens them.
      shape: such as ``[B, T, C]``.
      takes_half: whether the caller does.

    Raises:
      ValueError: if the number of dimensions differs.
      TypeError: if the dtype is another one.
    """
    if values.ndim != shape.count(",") + 1:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected {shape}")
    if values.dtype not in WIDE + (HALVES if takes_half else ()):
        halves = "torch.float16, torch.bfloat16, " if takes_half else ""
        raise TypeError(
            f"{name}: got {values.dtype}, expected {halves}torch.float32 or torch.float64; "
            f"pass {name}.float()"
        )


def check_logits(lm: Tensor, am: Tensor, symbols: Tensor, *, takes_half: bool = False) -> None:
    """Refuse unnormalised log-probs that do not fit each other or the symbols.

    Args:
      lm: ``[B, S+1, C]``, float32 or float64.
      am: ``[B, T, C]``, of the dtype of ``lm``.
      symbols: ``[B, S]``.
      takes_half: as in ``check_floats``.

    Raises:
      ValueError: a shape or a device.
      TypeError: a dtype.
    """
    check_floats("lm", lm, "[B, S+1, C]", takes_half=takes_half)
    check_floats("am", am, "[B, T, C]", takes_half=takes_half)
    if lm.dtype != am.dtype:
        raise TypeError(f"am: got {am.dtype}, expected lm's {lm.dtype}; convert one of them")
    for name, tensor in (("am", am), ("symbols", symbols)):
        if tensor.device != lm.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected lm's {lm.device}")
    check_fit(tuple(lm.shape), tuple(am.shape), symbols)


def check_fit(lm: tuple[int, ...], am: tuple[int, ...], symbols: Tensor) -> None:
    """Refuse shapes ``[B, S+1, C]``, ``[B, T, C]`` and ``[B, S]`` that do not fit each other.

    Raises:
      ValueError: naming the shapes.
    """
    B, _, C = am
    if (lm[0], lm[2]) != (B, C) or lm[1] < 1:
        raise ValueError(
            f"lm: got shape {lm}, expected [B, S+1, C] = [{B}, S+1, {C}] for am of shape {am}"
        )
    if tuple(symbols.shape) != (B, lm[1] - 1):
        raise ValueError(
            f"symbols: got shape {tuple(symbols.shape)}, expected [B, S] = [{B}, {lm[1] - 1}] for "
            f"lm of shape {lm}"
        )
