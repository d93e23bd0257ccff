"""Calls of functions compiled by ``torch.jit``, which take real tensors only."""

from __future__ import annotations

from typing import Any, Callable

from panda_icefall.routing.stand_in import as_tensors, name_of


def scripted_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """``__call__`` of a ``torch.jit.ScriptFunction`` or ``ScriptMethod``, given tensors."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = _name(self)
        return original(self, *as_tensors(args, name), **as_tensors(kwargs, name))

    return call


def _name(compiled: Any) -> str:
    owner = getattr(compiled, "owner", None)
    # "__torch__.scaling.SwooshR" and "forward", or the name of a function.
    kind = "" if owner is None else owner._type().name().rpartition(".")[2] + "."
    return f"scripted {kind}{compiled.name or name_of(compiled)}"
