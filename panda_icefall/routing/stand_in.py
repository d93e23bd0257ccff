"""``StandIn``: takes the place of a tensor that is not there yet, and becomes it where it must."""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from panda_icefall.dynamo import opaque
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.sharded_modules import in_forward_of
from panda_icefall.routing.torch_functions import FROM_SHAPE_AND_DTYPE, ON_THE_GRADIENT, name_of

Report = Callable[[str], None]

_SETTABLE = ("data", "grad", "requires_grad", "names", "real", "imag")


class StandIn(ABC):
    """What is done to it is recorded where it can be.

    Operations that ``record`` takes yield another stand-in; any other use materialises this object,
    once, into the tensor it stands for, in the grad mode it was made in, and goes on with that.

    It is no ``torch.Tensor``, and must not say that it is one: torch's C++ asks the same
    ``isinstance`` and then reads the memory of the object. ``applied`` lists who in torch is
    made to take it all the same.

    Args:
      report: called with the name of the operation that materialises it.

    Attributes:
      grad_enabled: grad mode it was made in; recording in another one would change gradients.
      shape, dtype, device, ndim, requires_grad, is_cuda: as of the tensor it stands for.
    """

    # Those of one family can meet in one operation; the first that says so records it.
    family: ClassVar[str]
    records_first: ClassVar[bool] = False
    # So numpy leaves `number * stand_in` to us.
    __array_priority__ = 1000

    def __init__(self, report: Report) -> None:
        self.grad_enabled = torch.is_grad_enabled()
        self._report = report
        self._tensor: Tensor | None = None
        self._is_read = False  # by something recorded
        _make_known_to_einops(type(self))

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

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What it reads, while it is not materialised; each once."""

    @abstractmethod
    def reading(self, tensors: Sequence[Tensor]) -> StandIn:
        """Another one that reads these instead of ``tensors()``."""

    def keep(self, result: Any, arguments: list[Any]) -> Any:
        """What to go on with after an operation on tensors.

        Args:
          result: what the operation gave.
          arguments: what it was given, with tensors instead of stand-ins.
        """
        return result

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def is_meta(self) -> bool:
        return self.device.type == "meta"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_materialised(self) -> bool:
        """Whether its ordinary tensor exists; nothing more is recorded on it then."""
        return self._tensor is not None

    def materialise(self, operation: str) -> Tensor:
        """The ordinary tensor; ``operation`` is what needed it."""
        if self._tensor is None:
            self._report(operation)
            with contextlib.ExitStack() as modes:
                # Kept for later uses, which may be outside of an inference_mode() around this one.
                modes.enter_context(torch.inference_mode(False))
                modes.enter_context(torch.set_grad_enabled(self.grad_enabled))
                modes.enter_context(no_autocast(self.device))
                # Not by the hooks of a checkpoint around this use, whose second run finds it made.
                modes.enter_context(saved_tensors_hooks(_as_it_is, _as_it_is))
                self._tensor = in_forward_of(self.tensors(), self.compute)
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
        if callable(attribute):
            return lambda *args, **kwargs: dispatch(attribute, (self, *args), kwargs)
        is_cheap = name in FROM_SHAPE_AND_DTYPE
        return getattr(_without_values(self) if is_cheap else self.materialise(name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTABLE:
            setattr(self.materialise(name), name, value)
        else:
            super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.materialise("__iter__"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"


@opaque
def dispatch(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record ``function`` if it can be, else run it on ordinary tensors."""
    given = [value for value in flat((*args, *kwargs.values())) if isinstance(value, StandIn)]
    name = name_of(function)
    if name in FROM_SHAPE_AND_DTYPE and args and isinstance(args[0], StandIn):
        return function(_without_values(args[0]), *args[1:], **kwargs)
    # Two families in one operation know nothing of each other.
    if given and all(value.family == given[0].family for value in given):
        recorder = next((value for value in given if value.records_first), given[0])
        recorded = recorder.record(function, args, kwargs)
        if recorded is not None:
            for value in given:
                value._is_read = True
            return recorded
    if name in ON_THE_GRADIENT and given and given[0] is args[0] and given[0]._is_read:
        raise PandaError(
            f"{name}: got a recorded tensor that was used before, expected one that was not: what "
            f"was recorded of it does not pass its gradient; call {name} before its first use, or "
            "panda_icefall.revert()"
        )
    args, kwargs = as_tensors(args, name), as_tensors(kwargs, name)
    result = function(*args, **kwargs)
    if not given:
        return result
    arguments = [*flat((*args, *kwargs.values()))]
    if isinstance(result, (tuple, list)) and not isinstance(result, torch.Size):
        return with_items(result, [given[0].keep(item, arguments) for item in result])
    return given[0].keep(result, arguments)


def with_items(like: Any, items: list[Any]) -> Any:
    """A tuple or list of the type of ``like``, which may be a named one, of other items."""
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)


def as_tensors(value: Any, operation: str) -> Any:
    """``value`` with tensors instead of stand-ins, in tuples, lists and dicts too."""
    if isinstance(value, StandIn):
        return value.materialise(operation)
    if isinstance(value, dict):
        return {key: as_tensors(item, operation) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(as_tensors(item, operation) for item in value))
    if type(value) in (list, tuple):
        return type(value)(as_tensors(item, operation) for item in value)
    return value


def _make_known_to_einops(kind: type[StandIn]) -> None:
    """Have einops call its functions for torch, which come back here; it goes by the exact type."""
    backends = sys.modules.get("einops._backends")
    kinds = getattr(backends, "_type2backend", {kind: None})
    if kind not in kinds:
        kinds[kind] = backends.get_backend(torch.empty(0))  # type: ignore[union-attr]


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _without_values(value: StandIn) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def flat(values: Iterable[Any]) -> Iterator[Any]:
    """The values, lists and tuples among them replaced by what they hold."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flat(value)
        else:
            yield value


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(Tensor, name)

    def method(self: StandIn, *args: Any, **kwargs: Any) -> Any:
        return dispatch(function, (self, *args), kwargs)

    method.__name__ = name
    return method


# Python, numpy, copy and pickle look these up on the class, past __getattr__.
_OF_EVERY_OBJECT = set(
    "__lt__ __le__ __gt__ __ge__ __eq__ __ne__ __deepcopy__ __reduce_ex__ __format__".split()
)
for _name in _OF_EVERY_OBJECT | ({*dir(Tensor)} - {*dir(StandIn)}):
    if _name.startswith("__") and callable(getattr(Tensor, _name)):
        setattr(StandIn, _name, _operator(_name))
