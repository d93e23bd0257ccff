"""Stand-ins of a CTC head: the logits of its linear layer, and their log-softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.dtypes import HALVES
from panda_icefall.routing.projection_call import ProjectionCall
from panda_icefall.routing.projections import DeferredProjection
from panda_icefall.routing.stand_in import Report, StandIn
from panda_icefall.routing.torch_functions import LOG_SOFTMAX, cast_target, functions_named

__all__ = ["CtcLogProbs", "CtcLogits"]

_PERMUTE = functions_named("permute")
_TRANSPOSE = functions_named("transpose swapaxes swapdims")


class CtcLogits(DeferredProjection):
    """Stands for the logits of a CTC head, whose log-softmax over the classes is recorded too."""

    family = "ctc head"

    def record(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StandIn | None:
        is_recording = not self.is_materialised and torch.is_grad_enabled() == self.grad_enabled
        if not is_recording or function not in LOG_SOFTMAX or not args or args[0] is not self:
            return super().record(function, args, kwargs)
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if dim not in (-1, 2):
            return None
        # Autocast has a say in it, by the device.
        probe = torch.empty((1, 1, 1), dtype=self.dtype, device=self.device)
        dtype = function(probe, *args[1:], **kwargs).dtype
        is_widening = self.dtype in HALVES and dtype == torch.float32
        if dtype != self.dtype and not is_widening:
            return None
        return CtcLogProbs(self.call, self.dtype, dtype, self._report)


class CtcLogProbs(StandIn):
    """Stands for the log-probs of a CTC head, or for those with the first two dimensions swapped.

    Recorded are the swap, ``contiguous()``, and a cast of half numbers to float32. Any other use
    materialises the tensor, one for both orders.

    Args:
      call: the head's linear layer.
      logits_dtype: what its result is cast to before the log-softmax.
      dtype: of the log-probs.
      report: as of ``StandIn``.
      swap_of: the log-probs in the order of the head's input; None: these are.
    """

    family = "ctc log-probs"

    def __init__(
        self,
        call: ProjectionCall,
        logits_dtype: torch.dtype,
        dtype: torch.dtype,
        report: Report,
        swap_of: CtcLogProbs | None = None,
    ) -> None:
        super().__init__(report)
        self.call = call
        self.swap_of = swap_of
        self._logits_dtype = logits_dtype
        self._dtype = dtype

    @property
    def shape(self) -> torch.Size:
        first, second = self.call.input.shape[:2]
        sizes = (first, second) if self.swap_of is None else (second, first)
        return torch.Size((*sizes, self.call.weight.shape[0]))

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self.call.input.device

    @property
    def requires_grad(self) -> bool:
        return self.grad_enabled and any(tensor.requires_grad for tensor in self.call.tensors())

    @property
    def is_materialised(self) -> bool:
        return (self._tensor if self.swap_of is None else self.swap_of._tensor) is not None

    def tensors(self) -> tuple[Tensor, ...]:
        return self.call.tensors()

    def reading(self, tensors: Sequence[Tensor]) -> CtcLogProbs:
        swap_of = None if self.swap_of is None else self.swap_of.reading(tensors)
        return CtcLogProbs(
            self.call.reading(tensors), self._logits_dtype, self.dtype, self._report, swap_of
        )

    def rows(self) -> Tensor:
        """What the head reads ``[B, T, D]`` where these log-probs are ``[T, B, C]``."""
        return self.call.input.transpose(0, 1) if self.swap_of is None else self.call.input

    def record(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StandIn | None:
        if self.is_materialised or torch.is_grad_enabled() != self.grad_enabled:
            return None
        if not args or args[0] is not self:
            return None
        if function is Tensor.contiguous and len(args) == 1 and not kwargs:
            return self
        if _swaps(function, args[1:], kwargs):
            return self._swapped()
        dtype = cast_target(function, args, kwargs)
        if dtype == self.dtype:
            return self
        if dtype == torch.float32 and self.dtype in HALVES:
            return self._as(dtype)
        return None

    def _swapped(self) -> CtcLogProbs:
        if self.swap_of is not None:
            return self.swap_of
        return CtcLogProbs(self.call, self._logits_dtype, self.dtype, self._report, self)

    def _as(self, dtype: torch.dtype) -> CtcLogProbs:
        swap_of = None if self.swap_of is None else self.swap_of._as(dtype)
        return CtcLogProbs(self.call, self._logits_dtype, dtype, self._report, swap_of)

    def materialise(self, operation: str) -> Tensor:
        if self.swap_of is not None:
            return self.swap_of.materialise(operation).transpose(0, 1)
        return super().materialise(f"{self.call.name}: {operation}")

    def compute(self) -> Tensor:
        logits = self.call.result().to(self._logits_dtype)
        return F.log_softmax(logits, dim=-1, dtype=self.dtype)


def _swaps(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``function(log_probs, *args)`` swaps the first two dimensions of three."""
    if kwargs or not args:
        return False
    if function in _PERMUTE:
        dims = args if len(args) > 1 else args[0]
        return [dim % 3 for dim in dims] == [1, 0, 2]
    if function in _TRANSPOSE and len(args) == 2:
        return {dim % 3 for dim in args} == {0, 1}
    return False
