"""``StandIn``: takes the place of a tensor that is not there yet, and becomes it where it must."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.normalizer.autocast import no_autocast

Report = Callable[[str], None]

CASTS: dict[Any, torch.dtype] = {
    Tensor.float: torch.float32,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
    Tensor.double: torch.float64,
}


class StandIn(ABC):
    """What is done to it is recorded where it can be.

    Operations that ``record`` takes yield another stand-in; any other use materialises this object,
    once, into the tensor it stands for, in the grad mode it was made in, and goes on with that.

    Args:
      report: called with the name of the operation that materialises it.

    Attributes:
      grad_enabled: grad mode it was made in; recording in another one would change gradients.
      shape, dtype, device, ndim, requires_grad, is_cuda: as of the tensor it stands for.
    """

    def __init__(self, report: Report) -> None:
        self.grad_enabled = torch.is_grad_enabled()
        self._report = report
        self._tensor: Tensor | None = None

    @property
    @abstractmethod
    def shape(self) -> torch.Size: ...

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype: ...

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def requires_grad(self) -> bool: ...

    @abstractmethod
    def record(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> StandIn | None:
        """The deferred result of a function that is given this object; None: materialise."""

    @abstractmethod
    def compute(self) -> Tensor:
        """The tensor it stands for; grad mode and autocast are set by the caller."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_materialised(self) -> bool:
        """Whether its ordinary tensor exists; nothing more is recorded on it then."""
        return self._tensor is not None

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def materialise(self, operation: str) -> Tensor:
        """The ordinary tensor; ``operation`` is what needed it."""
        if self._tensor is None:
            self._report(operation)
            with contextlib.ExitStack() as modes:
                # Kept for later uses, which may be outside of an inference_mode() around this one.
                modes.enter_context(torch.inference_mode(False))
                modes.enter_context(torch.set_grad_enabled(self.grad_enabled))
                modes.enter_context(no_autocast(self.device))
                self._tensor = self.compute()
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
            kind = type(self).__name__
            raise AttributeError(f"{kind!r} (a tensor stand-in) has no attribute {name!r}")
        attribute = getattr(Tensor, name)
        if not callable(attribute):
            return getattr(self.materialise(name), name)
        return lambda *args, **kwargs: dispatch(attribute, (self, *args), kwargs)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.materialise("__iter__"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"


@opaque
def dispatch(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record ``function`` if it can be, else run it on ordinary tensors."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, StandIn)]
    # Two kinds in one operation know nothing of each other.
    if given and all(type(value) is type(given[0]) for value in given):
        recorded = given[0].record(function, args, kwargs)
        if recorded is not None:
            return recorded
    name = getattr(function, "__name__", repr(function))

    def ordinary(value: Any) -> Any:
        if isinstance(value, StandIn):
            return value.materialise(name)
        if isinstance(value, (list, tuple)):
            return type(value)(ordinary(item) for item in value)
        return value

    return function(*ordinary(args), **{key: ordinary(value) for key, value in kwargs.items()})


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)

    def method(self: StandIn, *args: Any) -> Any:
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
    setattr(StandIn, _name, _operator(_name))


def cast_target(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.dtype | None:
    """The dtype that ``args[0].float()``, ``.to(...)`` and the like give.

    Returns:
      None where the function is none of them, or does more than change the dtype to a floating one.
    """
    if not args or not isinstance(args[0], StandIn):
        return None
    value, *rest = args
    if function in CASTS:
        return None if rest or kwargs else CASTS[function]
    if function is not Tensor.to:
        return None
    dtype, device = value.dtype, value.device
    if kwargs.get("copy"):
        return None
    for option in (*rest, *(v for k, v in kwargs.items() if k in ("dtype", "device", "other"))):
        if isinstance(option, torch.dtype):
            dtype = option
        elif isinstance(option, (str, torch.device)):
            device = torch.device(option)
        elif isinstance(option, (Tensor, StandIn)):
            dtype, device = option.dtype, option.device
    same_index = device.index in (None, value.device.index)
    if device.type != value.device.type or not same_index or not dtype.is_floating_point:
        return None
    return dtype
