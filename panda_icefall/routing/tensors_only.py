"""Calls of what takes real tensors only, without asking ``__torch_function__``."""

from __future__ import annotations

import functools
from typing import Any, Callable

from panda_icefall.routing.stand_in import as_tensors, name_of


def scripted_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """``__call__`` of a ``torch.jit.ScriptFunction`` or ``ScriptMethod``, given tensors."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = _name(self)
        return original(self, *as_tensors(args, name), **as_tensors(kwargs, name))

    return call


def given_tensors(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that is given tensors in place of stand-ins."""

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        name = name_of(original)
        return original(*as_tensors(args, name), **as_tensors(kwargs, name))

    return call


def _name(compiled: Any) -> str:
    owner = getattr(compiled, "owner", None)
    # "__torch__.scaling.SwooshR" and "forward", or the name of a function.
    kind = "" if owner is None else owner._type().name().rpartition(".")[2] + "."
    return f"scripted {kind}{compiled.name or name_of(compiled)}"
