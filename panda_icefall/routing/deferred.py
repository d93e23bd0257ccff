"""``DeferredJoint``: stands for a ``[B, T, s_range, X]`` tensor and records what is done to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import Tensor

from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.routing import recording
from panda_icefall.routing.graph import (
    Node,
    Operation,
    Sites,
    SiteTensor,
    in_order,
    materialise,
)


class DeferredJoint(SiteTensor):
    """A site tensor that is not there yet.

    ``k2.do_rnnt_pruning`` returns two of these while PANDA is applied. Operations listed in
    ``recording`` yield another deferred object; any other use materialises this object, once, into
    the tensor it stands for and goes on with that.

    Attributes:
      sites, node: what it stands for.
      shape, dtype, device, ndim, requires_grad, is_cuda: as of that tensor.
    """

    def __init__(self, node: Node, sites: Sites, report: Callable[[str], None]) -> None:
        super().__init__(node, sites)
        self._report = report
        self._tensor: Tensor | None = None

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def ndim(self) -> int:
        return 4

    @property
    def requires_grad(self) -> bool:
        return self.grad_enabled and any(
            tensor.requires_grad
            for node in in_order(self.node)
            if not isinstance(node, Operation)
            for tensor in node.tensors()
        )

    @property
    def is_materialised(self) -> bool:
        return self._tensor is not None

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return 4

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def derive(self, node: Node) -> DeferredJoint:
        """Another deferred object on the same sites."""
        return DeferredJoint(node, self.sites, self._report)

    def materialise(self, operation: str) -> Tensor:
        """The ordinary tensor ``[B, T, s_range, X]``; ``operation`` is what needed it."""
        if self._tensor is None:
            self._report(operation)
            with contextlib.ExitStack() as modes:
                # Kept for later uses, which may be outside of an inference_mode() around this one.
                modes.enter_context(torch.inference_mode(False))
                modes.enter_context(torch.set_grad_enabled(self.grad_enabled))
                modes.enter_context(no_autocast(self.device))
                self._tensor = materialise(self.node, self.sites)
        return self._tensor

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return dispatch(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(f"'DeferredJoint' (a tensor stand-in) has no attribute {name!r}")
        attribute = getattr(Tensor, name)
        if not callable(attribute):
            return getattr(self.materialise(name), name)
        return lambda *args, **kwargs: dispatch(attribute, (self, *args), kwargs)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.materialise("__iter__"))

    def __repr__(self) -> str:
        return f"DeferredJoint(shape={tuple(self.shape)}, dtype={self.dtype})"


def dispatch(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record ``function`` if it can be, else run it on ordinary tensors."""
    recorded = recording.record(function, args, kwargs)
    if recorded is not None:
        return recorded
    name = getattr(function, "__name__", repr(function))

    def ordinary(value: Any) -> Any:
        if isinstance(value, DeferredJoint):
            return value.materialise(name)
        if isinstance(value, (list, tuple)):
            return type(value)(ordinary(item) for item in value)
        return value

    return function(*ordinary(args), **{key: ordinary(value) for key, value in kwargs.items()})


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)

    def method(self: DeferredJoint, *args: Any) -> Any:
        return dispatch(function, (self, *args), {})

    method.__name__ = name
    return method


# Python looks these up on the class, past __getattr__.
for _name in (
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ "
    "__truediv__ __rtruediv__ __itruediv__ __neg__ __pos__ __matmul__ __rmatmul__ "
    "__pow__ __rpow__ __floordiv__ __rfloordiv__ __mod__ __rmod__ __abs__ "
    "__getitem__ __setitem__ __len__ __bool__ __float__ __int__ "
    "__lt__ __le__ __gt__ __ge__ __eq__ __ne__"
).split():
    setattr(DeferredJoint, _name, _operator(_name))
