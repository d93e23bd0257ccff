"""``DeferredProjection``: a projection to classes that waits for the simple loss to be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dtypes import HALVES
from panda_icefall.routing.projection_call import ProjectionCall
from panda_icefall.routing.stand_in import Report, StandIn
from panda_icefall.routing.torch_functions import IN_PLACE, SIGN_OF, cast_target


class DeferredProjection(StandIn):
    """Stands for the output ``[B, R, C]`` of a projection, cast to ``dtype``.

    Recorded are ``contiguous()`` and ``clone()``, a cast of half numbers to float32, which loses
    nothing, products and sums with a number or one number per class, and sums of two of them (as
    LoRA's). Any other use materialises the tensor.
    """

    family = "projection"

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
        return type(self)(self.call.reading(tensors), self.dtype, self._report)

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
            if function in IN_PLACE:
                result = self._combined(IN_PLACE[function], args, kwargs)
                if result is None or result.dtype != self.dtype:
                    return None
                self.call = result.call
                return self
        return self._combined(function, args, kwargs)

    def _derived(self, call: ProjectionCall, dtype: torch.dtype) -> DeferredProjection | None:
        is_widening = self.dtype in HALVES and dtype == torch.float32
        is_known = dtype == self.dtype or is_widening
        return type(self)(call, dtype, self._report) if is_known else None

    def _combined(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> DeferredProjection | None:
        """A product with a number per class, or a sum; None: neither."""
        if len(args) != 2 or set(kwargs) - {"alpha"} or self.call.is_freed:
            return None
        first, second = args
        sign = SIGN_OF.get(function)
        if sign in ("+", "-"):
            factor = kwargs.get("alpha", 1)
            return self._sum(first, second, factor if sign == "+" else -factor)
        if sign == "*" and second is self:
            first, second = second, first
        if sign is None or kwargs or first is not self:
            return None
        dtype = self._dtype_with(second)
        if dtype is None:
            return None
        call = self.call.scaled(torch.mul if sign == "*" else torch.div, second)
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
        return self.call.result().to(self.dtype)


def _may_be_added(first: DeferredProjection, second: DeferredProjection) -> bool:
    return (
        not (first.is_materialised or second.is_materialised)
        and not (first.call.is_freed or second.call.is_freed)
        and first.grad_enabled == second.grad_enabled
        and (first.shape, first.device) == (second.shape, second.device)
        and (first.dtype == torch.float64) == (second.dtype == torch.float64)
    )
