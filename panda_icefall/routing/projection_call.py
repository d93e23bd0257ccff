"""``ProjectionCall``: a projection's linear layer that is computed, or folded, with the loss."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dtypes import HALVES
from panda_icefall.normalizer.autocast import autocast_dtype
from panda_icefall.routing.nodes import LateInputs, linear

__all__ = ["ProjectionCall", "is_computing_projection"]

_thread = threading.local()


@dataclass(frozen=True, eq=False)
class ProjectionCall(LateInputs):
    """``F.linear(input, weight, bias)`` ``[B, R, C]``, R being T or S + 1.

    Attributes:
      name: of the projection, ``simple_am_proj``.
      input, weight, bias: ``[B, R, D]``, ``[C, D]``, ``[C]`` or None.
      cast: what all three are rounded to first (autocast, or a half model's own dtype), or None.
    """

    reader = "a projection to classes"

    name: str
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    cast: torch.dtype | None

    def tensors(self) -> tuple[Tensor, ...]:
        found = (self.input, self.weight)
        return found if self.bias is None else (*found, self.bias)

    def reading(self, tensors: Sequence[Tensor]) -> ProjectionCall:
        """The same of other ``tensors()``."""
        input, weight, *bias = tensors
        return dataclasses.replace(self, input=input, weight=weight, bias=bias[0] if bias else None)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.input.dtype if self.cast is None else self.cast

    @classmethod
    def of(cls, name: str, input: Any, weight: Any, bias: Any = None) -> ProjectionCall | None:
        """The arguments of an ``F.linear``; None where torch should raise or run itself."""
        given = [input, weight] if bias is None else [input, weight, bias]
        if not all(isinstance(t, Tensor) and t.device == input.device for t in given):
            return None
        if input.dim() != 3 or weight.dim() != 2 or weight.shape[1] != input.shape[2]:
            return None
        if bias is not None and bias.shape != weight.shape[:1]:
            return None
        dtypes = {tensor.dtype for tensor in given}
        cast = autocast_dtype(input.device)
        # float64 is left alone by autocast.
        if cast is not None and torch.float64 not in dtypes:
            is_known = dtypes <= {torch.float32, cast}
        else:
            cast = input.dtype if input.dtype in HALVES else None
            is_known = len(dtypes) == 1 and input.dtype.is_floating_point
        return cls(name, input, weight, bias, cast) if is_known else None

    def result(self) -> Tensor:
        """The tensor ``[B, R, C]``; the caller sets the grad mode, autocast is off.

        Raises:
          PandaError: a tensor was changed in place since it was recorded.
        """
        self.check_unchanged()
        before, _thread.is_computing = is_computing_projection(), True
        try:
            return linear(self.input, self.weight, self.bias, self.cast)
        finally:
            _thread.is_computing = before

    def scaled(self, function: Callable[..., Tensor], by: Any) -> ProjectionCall:
        """``function(F.linear(...), by)``, a product or a quotient with a number or ``[C]``."""
        wide = self._wide()
        of_rows = by.reshape(-1, 1) if isinstance(by, Tensor) and by.dim() else by
        bias = None if wide.bias is None else function(wide.bias, _flat(by))
        return dataclasses.replace(wide, weight=function(wide.weight, of_rows), bias=bias)

    def shifted(self, by: Any) -> ProjectionCall:
        """``F.linear(...) + by``, a number or ``[C]``."""
        wide = self._wide()
        bias = wide.weight.new_zeros(wide.weight.shape[0]) if wide.bias is None else wide.bias
        return dataclasses.replace(wide, bias=bias + _flat(by))

    def plus(self, other: ProjectionCall) -> ProjectionCall:
        """The sum of both results: one projection of both inputs side by side."""
        mine, theirs = self._wide(), other._wide()
        biases = [bias for bias in (mine.bias, theirs.bias) if bias is not None]
        return dataclasses.replace(
            mine,
            input=torch.cat((mine.input, theirs.input), dim=2),
            weight=torch.cat((mine.weight, theirs.weight), dim=1),
            bias=sum(biases[1:], biases[0]) if biases else None,
        )

    def _wide(self) -> ProjectionCall:
        """The same with rounded operands in float32, so that what is made of them is not rounded.

        Raises:
          PandaError: a tensor was changed in place since it was recorded.
        """
        self.check_unchanged()
        if self.cast is None:
            return self
        input, weight = (tensor.to(self.cast).float() for tensor in (self.input, self.weight))
        bias = None if self.bias is None else self.bias.to(self.cast).float()
        return ProjectionCall(self.name, input, weight, bias, None)


def is_computing_projection() -> bool:
    """Whether this thread computes a projection, whose linear layer is not to be recorded again."""
    return getattr(_thread, "is_computing", False)


def _flat(by: Any) -> Any:
    return by.reshape(-1) if isinstance(by, Tensor) and by.dim() else by
