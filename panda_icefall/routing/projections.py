"""``DeferredProjection``: a projection to classes that waits for the simple loss to be computed."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from panda_icefall.normalizer.autocast import autocast_dtype
from panda_icefall.routing.late_inputs import LateInputs
from panda_icefall.routing.nodes import linear
from panda_icefall.routing.stand_in import Report, StandIn, cast_target

__all__ = ["DeferredProjection", "ProjectionCall", "is_computing_projection"]

_HALVES = (torch.float16, torch.bfloat16)


def _functions(names: str) -> set[Callable[..., Any]]:
    homes = (torch, Tensor)
    return {getattr(home, n) for n in names.split() for home in homes if hasattr(home, n)}


_PRODUCTS = _functions("mul multiply __mul__ __rmul__")
_QUOTIENTS = _functions("div divide true_divide __truediv__")
_SUMS = _functions("add __add__ __radd__")
_DIFFERENCES = _functions("sub subtract __sub__")
# In-place twin -> the function it stands for.
_IN_PLACE = {
    getattr(Tensor, twin): getattr(torch, name)
    for name, twins in {
        "mul": ("mul_", "__imul__"),
        "div": ("div_", "__itruediv__"),
        "add": ("add_", "__iadd__"),
        "sub": ("sub_", "__isub__"),
    }.items()
    for twin in twins
}


@dataclass(frozen=True, eq=False)
class ProjectionCall(LateInputs):
    """``F.linear(input, weight, bias)`` ``[B, R, C]``, R being T or S + 1.

    Attributes:
      name: of the projection, ``simple_am_proj``.
      input, weight, bias: ``[B, R, D]``, ``[C, D]``, ``[C]`` or None.
      cast: what all three are rounded to first (autocast, or a half model's own dtype), or None.
    """

    reader = "a simple projection"

    name: str
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    cast: torch.dtype | None

    def tensors(self) -> tuple[Tensor, ...]:
        found = (self.input, self.weight)
        return found if self.bias is None else (*found, self.bias)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.input.dtype if self.cast is None else self.cast

    @classmethod
    def of(cls, name: str, input: Any, weight: Any, bias: Any = None) -> ProjectionCall | None:
        """The arguments of an ``F.linear``; None for those that it is better left to judge."""
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
            cast = input.dtype if input.dtype in _HALVES else None
            is_known = len(dtypes) == 1 and input.dtype.is_floating_point
        return cls(name, input, weight, bias, cast) if is_known else None

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


_thread = threading.local()


@contextlib.contextmanager
def _computing_projection() -> Iterator[None]:
    """While a projection is computed, its own linear layer is not to be recorded again."""
    before, _thread.is_computing = is_computing_projection(), True
    try:
        yield
    finally:
        _thread.is_computing = before


def is_computing_projection() -> bool:
    """Whether this thread is in a ``DeferredProjection.compute``."""
    return getattr(_thread, "is_computing", False)


def _flat(by: Any) -> Any:
    return by.reshape(-1) if isinstance(by, Tensor) and by.dim() else by


class DeferredProjection(StandIn):
    """Stands for the output ``[B, R, C]`` of a projection, cast to ``dtype``.

    Recorded are ``contiguous()`` and ``clone()``, a cast of half numbers to float32, which loses
    nothing, products and sums with a number or one number per class, and sums of two of them (as
    LoRA's). Any other use materialises the tensor.
    """

    def __init__(self, call: ProjectionCall, dtype: torch.dtype, report: Report) -> None:
        super().__init__(report)
        self.call = call
        self._dtype = dtype

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.call.input.shape[:2], self.call.weight.shape[0]))

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self.call.input.device

    @property
    def requires_grad(self) -> bool:
        return self.grad_enabled and any(tensor.requires_grad for tensor in self.call.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        return self.call.tensors()

    def reading(self, tensors: Sequence[Tensor]) -> DeferredProjection:
        input, weight, *bias = tensors
        call = dataclasses.replace(
            self.call, input=input, weight=weight, bias=bias[0] if bias else None
        )
        return DeferredProjection(call, self.dtype, self._report)

    def record(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StandIn | None:
        if self.is_materialised or torch.is_grad_enabled() != self.grad_enabled:
            return None
        if args and args[0] is self:
            if (dtype := cast_target(function, args, kwargs)) is not None:
                return self if dtype == self.dtype else self._derived(self.call, dtype)
            if function is Tensor.contiguous and not (args[1:] or kwargs):
                return self
            if function in (Tensor.clone, torch.clone) and not (args[1:] or kwargs):
                return self._derived(self.call, self.dtype)
            if function in _IN_PLACE:
                result = self._combined(_IN_PLACE[function], args, kwargs)
                if result is None or result.dtype != self.dtype:
                    return None
                self.call = result.call
                return self
        return self._combined(function, args, kwargs)

    def _derived(self, call: ProjectionCall, dtype: torch.dtype) -> DeferredProjection | None:
        is_widening = self.dtype in _HALVES and dtype == torch.float32
        is_known = dtype == self.dtype or is_widening
        return DeferredProjection(call, dtype, self._report) if is_known else None

    def _combined(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DeferredProjection | None:
        """A product with a number per class, or a sum; None: neither."""
        if len(args) != 2 or set(kwargs) - {"alpha"}:
            return None
        first, second = args
        if function in _SUMS or function in _DIFFERENCES:
            sign = 1 if function in _SUMS else -1
            return self._sum(first, second, sign * kwargs.get("alpha", 1))
        is_product = function in _PRODUCTS
        if is_product and second is self:
            first, second = second, first
        if kwargs or first is not self or not (is_product or function in _QUOTIENTS):
            return None
        dtype = self._dtype_with(second)
        if dtype is None:
            return None
        call = self.call.scaled(torch.mul if is_product else torch.div, second)
        return self._derived(call, dtype)

    def _sum(self, first: Any, second: Any, factor: float) -> DeferredProjection | None:
        """``first + factor * second``, one of which is this."""
        if isinstance(first, DeferredProjection) and isinstance(second, DeferredProjection):
            if not _may_be_added(first, second):
                return None
            other = second.call if factor == 1 else second.call.scaled(torch.mul, factor)
            dtype = torch.promote_types(first.dtype, second.dtype)
            return self._derived(first.call.plus(other), dtype)
        term = second if first is self else first
        with_term = self._dtype_with(term)
        if with_term is None:
            return None
        if first is self:
            return self._derived(self.call.shifted(term * factor), with_term)
        return self._derived(self.call.scaled(torch.mul, factor).shifted(term), with_term)

    def _dtype_with(self, value: Any) -> torch.dtype | None:
        """Dtype of a product with a number or one number per class; None: it is neither."""
        if isinstance(value, Tensor):
            widths = value.shape[-1:]
            if value.dim() > 3 or widths not in ((), (1,), self.shape[-1:]):
                return None
            if value.numel() != widths.numel():
                return None
            if value.device != self.device and (value.dim() or value.device.type != "cpu"):
                return None
        elif not isinstance(value, (int, float)):
            return None
        return torch.result_type(torch.empty((1, 1, 1), dtype=self.dtype), value)

    def materialise(self, operation: str) -> Tensor:
        return super().materialise(f"{self.call.name}: {operation}")

    def compute(self) -> Tensor:
        call = self.call
        call.check_unchanged()
        with _computing_projection():
            return linear(call.input, call.weight, call.bias, call.cast).to(self.dtype)


def _may_be_added(first: DeferredProjection, second: DeferredProjection) -> bool:
    return (
        not (first.is_materialised or second.is_materialised)
        and first.grad_enabled == second.grad_enabled
        and (first.shape, first.device) == (second.shape, second.device)
        and (first.dtype == torch.float64) == (second.dtype == torch.float64)
    )
