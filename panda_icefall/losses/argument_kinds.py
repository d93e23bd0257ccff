"""What kinds of arguments the losses of a training loop of one's own take."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_kinds(joiner: Any, **numbers: Any) -> None:
    """Refuse what is no joiner, or no number.

    Raises:
      TypeError: naming it.
    """
    if isinstance(joiner, Tensor) or not callable(joiner):
        raise TypeError(
            f"joiner: got {type(joiner).__name__}, expected a module or function, not logits"
        )
    optional = ("workspace_mib", "adjoint_tolerance")
    for name, value in numbers.items():
        if not isinstance(value, (Real, Tensor)) and not (value is None and name in optional):
            raise TypeError(f"{name}: got {value!r}, expected a number")


def as_integer(name: str, value: Any) -> int:
    """An integer of Python's, of numpy's, or of a tensor.

    Raises:
      TypeError: naming it.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, expected an integer") from None


def as_indices(name: str, values: Any, device: torch.device, form: str) -> Tensor:
    """The integers of an argument, int64 on ``device``.

    Args:
      form: its shape, as an error spells it.

    Raises:
      TypeError: it is no tensor, or not of integers.
    """
    if not isinstance(values, Tensor):
        got = type(values).__name__
        raise TypeError(f"{name}: got {got}, expected a tensor of integers {form}")
    if values.dtype not in _INTEGERS:
        raise TypeError(f"{name}: got {values.dtype}, expected integers, such as torch.int64")
    return values.to(device).long()


def as_rows(name: str, values: Tensor, form: str, axis: int | None = None) -> Tensor:
    """``[B, R, D]`` of ``values``, which may have a dimension of size 1 at ``axis`` besides.

    Raises:
      ValueError: another shape than ``form`` spells.
      TypeError: no floating point tensor.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name}: got {got}, expected a floating point tensor {form}")
    if axis is not None and values.dim() == 4 and values.shape[axis] == 1:
        return values.squeeze(axis)
    if values.dim() != 3:
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected {form}")
    return values
