"""Functions of torch that do not ask ``__torch_function__``: given what they can take."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import distributed

from panda_icefall.routing.custom_functions import find_tensors, function_apply
from panda_icefall.routing.module_calls import module_call
from panda_icefall.routing.stand_in import as_tensors
from panda_icefall.routing.torch_functions import name_of
from panda_icefall.swaps import MISSING, Swap

_lock = threading.RLock()


class _Shared:
    """One function of torch, replaced as long as somebody holds it.

    Args:
      make: the swap of what is there now.
    """

    def __init__(self, make: Callable[[], Swap]) -> None:
        self._make = make
        self._swap = make()
        self._holders = 0

    @property
    def full_name(self) -> str:
        return self._swap.full_name

    def take(self) -> None:
        with _lock:
            if self._holders == 0:
                self._swap = self._make()
                self._swap.install()
            self._holders += 1

    def give_back(self) -> bool:
        """False where somebody else has replaced it since."""
        with _lock:
            self._holders -= 1
            return self._holders > 0 or self._swap.remove()


class TorchSwap:
    """A function of torch that is replaced while this, or another one of it, is installed.

    ``apply`` and losses of one's own loop, in any number of threads, share one replacement.
    """

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._is_held = False

    @property
    def full_name(self) -> str:
        """For messages."""
        return self._shared.full_name

    def install(self) -> None:
        if not self._is_held:
            self._is_held = True
            self._shared.take()

    def remove(self) -> bool:
        """Do without it; False where it was not installed, or somebody else has replaced it."""
        if not self._is_held:
            return False
        self._is_held = False
        return self._shared.give_back()


@contextmanager
def recording_in_torch() -> Iterator[None]:
    """The swaps in place for the enclosed block."""
    swaps = swaps_in_torch()
    for swap in swaps:
        swap.install()
    try:
        yield
    finally:
        for swap in swaps:
            swap.remove()


def swaps_in_torch() -> list[TorchSwap]:
    """Of functions of torch that do not ask ``__torch_function__``.

    Ours take stand-ins, or turn them into the tensors that they stand for first.
    """
    return [TorchSwap(shared) for shared in _shared()]


@functools.cache
def _shared() -> list[_Shared]:
    function: Any = torch.autograd.Function

    def of_function() -> Swap:
        return Swap.of(function, "apply", function_apply(vars(function).get("apply", MISSING)))

    def of_module() -> Swap:
        return Swap.of(nn.Module, "__call__", module_call(nn.Module.__call__))

    def of_compiled(kind: Any) -> Swap:
        return Swap.of(kind, "__call__", _scripted_call(kind.__call__))

    def of_backward() -> Swap:
        # torch 1.13 does not ask there.
        return Swap.of(torch.autograd, "backward", _given_tensors(torch.autograd.backward))

    def of_distributed() -> Swap:
        ours = find_tensors(distributed._find_tensors)
        return Swap.of(distributed, "_find_tensors", ours)

    makers: list[Callable[[], Swap]] = [of_function, of_module]
    for kind in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        makers.append(functools.partial(of_compiled, kind))
    makers.append(of_backward)
    if hasattr(distributed, "_find_tensors"):
        makers.append(of_distributed)
    return [_Shared(make) for make in makers]


def _scripted_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """``__call__`` of a ``torch.jit.ScriptFunction`` or ``ScriptMethod``, given tensors."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = _scripted_name(self)
        return original(self, *as_tensors(args, name), **as_tensors(kwargs, name))

    return call


def _scripted_name(compiled: Any) -> str:
    owner = getattr(compiled, "owner", None)
    # "__torch__.scaling.SwooshR" and "forward", or the name of a function.
    kind = "" if owner is None else owner._type().name().rpartition(".")[2] + "."
    return f"scripted {kind}{compiled.name or name_of(compiled)}"


def _given_tensors(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that is given tensors instead of stand-ins."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        name = name_of(original)
        return original(*as_tensors(args, name), **as_tensors(kwargs, name))

    return call
