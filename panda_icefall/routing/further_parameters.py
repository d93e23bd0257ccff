"""Functions of hosts that have more parameters than those known, as newer versions may."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from panda_icefall.dynamo import opaque
from panda_icefall.routing.hosts import Kind
from panda_icefall.routing.replaced import RoutingState
from panda_icefall.routing.stand_in import as_tensors
from panda_icefall.routing.status import LossTotals

Function = Callable[..., Any]

_COUNTED = {
    Kind.PRUNED_LOSS: LossTotals(losses_dense=1),
    Kind.FULL_LOSS: LossTotals(losses_dense=1),
    Kind.SIMPLE_LOSS: LossTotals(simple_losses_dense=1),
}


def without(original: Function, further: Sequence[str]) -> Function:
    """The same function without some of its parameters, which keep their defaults."""
    if not further:
        return original
    signature = inspect.signature(original)
    known = [p for p in signature.parameters.values() if p.name not in further]

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    call.__signature__ = signature.replace(parameters=known)  # type: ignore[attr-defined]
    return call


def with_further(
    ours: Function, original: Function, further: Sequence[str], kind: Kind, state: RoutingState
) -> Function:
    """``ours`` for calls that leave ``further`` at their defaults, the original for others.

    Args:
      ours: what replaces ``without(original, further)``.
      further: parameters of the original that are not known; nobody can say what they change.
      kind: of the original; a loss that goes to it is counted as dense, and said once.
      state: of the replaced functions.
    """
    if not further:
        return ours
    theirs = inspect.signature(original).parameters
    own = [p for name, p in inspect.signature(ours).parameters.items() if name not in theirs]
    signature = inspect.signature(original).replace(parameters=[*theirs.values(), *own])

    @functools.wraps(original)
    @opaque
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        used = [
            name
            for name in further
            if name in given.arguments and not _is_same(given.arguments[name], theirs[name].default)
        ]
        for name in further:
            if name not in used:
                given.arguments.pop(name, None)
        if not used:
            return ours(*given.args, **given.kwargs)
        reason = f"{', '.join(used)}, which PANDA does not know"
        if kind in _COUNTED:
            state.refuse_dense(original, reason)
            state.counters.add(_COUNTED[kind])
        host = original.__module__.partition(".")[0]
        state.say_once(
            f"{host}.{original.__name__} was given {reason}, and is computed as without PANDA"
        )
        # What only ours has, such as use_hat_loss, is left out at its default.
        for parameter in own:
            if _is_same(given.arguments.get(parameter.name), parameter.default):
                given.arguments.pop(parameter.name, None)
        return original(*as_tensors(given.args, reason), **as_tensors(given.kwargs, reason))

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _is_same(value: Any, default: Any) -> bool:
    """Whether a plain value is the default; of tensors and the like only the default itself is."""
    if value is default:
        return True
    return (
        type(value) is type(default) and isinstance(value, (int, float, str)) and value == default
    )
