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

_lock = threading.Lock()
_users = 0
_installed: list[Swap] = []


@contextmanager
def recording_in_torch() -> Iterator[None]:
    """The swaps in place for the enclosed block, in any number of threads."""
    global _users
    with _lock:
        if _users == 0:
            _installed[:] = swaps_in_torch()
            for swap in _installed:
                swap.install()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for swap in reversed(_installed):
                    swap.remove()


def swaps_in_torch() -> list[Swap]:
    """Of functions of torch that do not ask ``__torch_function__``.

    Ours take stand-ins, or turn them into the tensors that they stand for first.
    """
    function: Any = torch.autograd.Function
    swaps = [
        Swap.of(function, "apply", function_apply(vars(function).get("apply", MISSING))),
        Swap.of(nn.Module, "__call__", module_call(nn.Module.__call__)),
    ]
    for compiled in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        swaps.append(Swap.of(compiled, "__call__", _scripted_call(compiled.__call__)))
    # torch 1.13 does not ask there.
    swaps.append(Swap.of(torch.autograd, "backward", _given_tensors(torch.autograd.backward)))
    if hasattr(distributed, "_find_tensors"):
        ours = find_tensors(distributed._find_tensors)
        swaps.append(Swap.of(distributed, "_find_tensors", ours))
    return swaps


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
