"""``DeferredProjection``: a projection to classes that waits for the simple loss to be computed.

The recipes' ``simple_am_proj`` and ``simple_lm_proj`` feed nothing but ``k2.rnnt_loss_smoothed``.
Their ``forward`` is replaced on the module itself, so that the call of ``F.linear`` in it, however
its weight was made, gives a stand-in from which that loss reads input, weight and bias.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from panda_icefall.dynamo import opaque
from panda_icefall.normalizer.autocast import autocast_dtype
from panda_icefall.routing.custom_functions import enclosing_function
from panda_icefall.routing.late_inputs import LateInputs
from panda_icefall.routing.nodes import linear
from panda_icefall.routing.stand_in import Report, StandIn, cast_target
from panda_icefall.routing.tracing import is_traced

__all__ = ["DeferredProjection", "ProjectionCall", "RecordingForward", "find_projections"]

_NAME = re.compile(r"(?:.*\.)?simple_(?:\w+_)?(am|lm)_proj(?:_\w+)?")
_HALVES = (torch.float16, torch.bfloat16)


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
        given = [tensor for tensor in (input, weight, bias) if tensor is not None]
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


class DeferredProjection(StandIn):
    """Stands for the output ``[B, R, C]`` of a projection, cast to ``dtype``.

    Recorded are ``contiguous()`` and ``clone()``, and a cast of half numbers to float32, which
    loses nothing. Any other use materialises the tensor.
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
        if not args or args[0] is not self:
            return None
        if (dtype := cast_target(function, args, kwargs)) is not None:
            if dtype == self.dtype:
                return self
            is_widening = self.dtype in _HALVES and dtype == torch.float32
            return DeferredProjection(self.call, dtype, self._report) if is_widening else None
        if len(args) > 1 or kwargs:
            return None
        if function is Tensor.contiguous:
            return self
        if function in (Tensor.clone, torch.clone):
            return DeferredProjection(self.call, self.dtype, self._report)
        return None

    def materialise(self, operation: str) -> Tensor:
        return super().materialise(f"{self.call.name}: {operation}")

    def compute(self) -> Tensor:
        call = self.call
        call.check_unchanged()
        return linear(call.input, call.weight, call.bias, call.cast).to(self.dtype)


class RecordingForward:
    """A projection's ``forward``: its own, with the first ``F.linear`` in it deferred.

    A deep copy of the module, or one that was pickled, has its own plain ``forward``; a shallow one
    (``nn.DataParallel`` makes such) has this one and with it the first module's weight.

    Args:
      name: of the projection.
      module: the projection.
      report: as of ``DeferredProjection``.
    """

    def __init__(self, name: str, module: nn.Module, report: Report) -> None:
        self.name = name
        self._module = module
        self._own = vars(module).get("forward")
        # What torch.compile wraps has one linear layer to compile, which is not to be computed.
        self._original: Callable[..., Any] = getattr(module, "_orig_mod", module.forward)
        self._report = report
        self._is_given_up = False

    @opaque
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_traced() or self._is_given_up:
            return self._original(*args, **kwargs)
        if (function := enclosing_function()) is not None:
            # Reentrant checkpoints, which compute again in backward, and want a tensor there too.
            self._is_given_up = True
            self._report(f"{self.name}: inside {function}")
            return self._original(*args, **kwargs)
        if self._has_backward_hooks():
            self._report(f"{self.name}: backward hook")
            return self._original(*args, **kwargs)
        with _DeferredLinear(self.name, self._report):
            return self._original(*args, **kwargs)

    def _has_backward_hooks(self) -> bool:
        """Whether somebody waits for the gradient of the output, which would never be there."""
        module = self._module
        return bool(module._backward_hooks or getattr(module, "_backward_pre_hooks", None))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_plain_forward, (self._module, self._own))


def _plain_forward(module: nn.Module, own: Callable[..., Any] | None) -> Callable[..., Any]:
    return MethodType(type(module).forward, module) if own is None else own


class _DeferredLinear(TorchFunctionMode):
    """Gives a stand-in for the first ``F.linear`` on a ``[B, R, D]`` tensor.

    Only for that: where it has to become a tensor at once, it is ``F.linear`` that computes it.
    """

    def __init__(self, name: str, report: Report) -> None:
        super().__init__()
        self._name = name
        self._report_materialised = report
        self._is_done = False

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.linear and not self._is_done:
            call = ProjectionCall.of(self._name, *args, **kwargs)
            if call is not None:
                self._is_done = True
                return DeferredProjection(call, call.dtype, self._report_materialised)
        return function(*args, **kwargs)


def find_projections(model: nn.Module) -> dict[str, nn.Module]:
    """The projections of the simple loss, by their names in ``model``.

    Those are the modules called ``simple_am_proj`` and ``simple_lm_proj``, or with a word more
    (``simple_am_proj_giga``, ``simple_st_am_proj``), that have a matrix for their weight.

    Args:
      model: a recipe's model, wrapped in DDP or not.

    Returns:
      Both kinds, or nothing: one alone cannot be deferred.
    """
    found, kinds = {}, set()
    for name, module in model.named_modules():
        match = _NAME.fullmatch(name)
        weight = getattr(module, "weight", None)
        if match is None or not isinstance(weight, Tensor) or weight.dim() != 2:
            continue
        if not isinstance(module, torch.jit.ScriptModule):
            found[name] = module
            kinds.add(match.group(1))
    return found if kinds == {"am", "lm"} else {}
