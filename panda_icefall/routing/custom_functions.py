"""Custom autograd functions around recorded tensors: they are to get, and give, real ones.

``torch.autograd.Function.apply`` does not ask ``__torch_function__``: a stand-in would pass through
it as an opaque object, and the function's backward would silently be lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import distributed
from torch.utils import checkpoint
from torch.utils.checkpoint import CheckpointFunction

from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.stand_in import StandIn, as_tensors
from panda_icefall.swaps import MISSING

_inside = threading.local()


def enclosing_function() -> str | None:
    """The name of the custom function whose forward runs now in this thread, if one does."""
    names: list[str] = getattr(_inside, "names", [])
    return names[-1] if names else None


def function_apply(original: Any) -> classmethod[Any, Any, Any]:
    """``torch.autograd.Function.apply`` that is given tensors instead of stand-ins.

    Args:
      original: the one to replace, as it stands in the class; ``MISSING`` where it is inherited.
    """

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if original is MISSING:  # torch 1.13 inherits it
            inner = super(torch.autograd.Function, cls).apply
        else:
            inner = original.__get__(None, cls)
        if cls is getattr(distributed, "_DDPSink", None):
            return _through_sink(inner, args)
        if cls is getattr(checkpoint, "_NoopSaveInputs", None):
            # Keeps what a checkpoint is given, of any kind, and gives nothing back (in torch 2.6).
            return inner(*args, **kwargs)
        if cls is CheckpointFunction:
            # What the checkpointed code gives is to be an output of this function.
            args = (_giving_tensors(args[0]), *args[1:])
        given = [a.materialise(cls.__name__) if isinstance(a, StandIn) else a for a in args]
        names = _inside.__dict__.setdefault("names", [])
        names.append(cls.__name__)
        try:
            found = inner(*given, **kwargs)
        finally:
            names.pop()
        for value in found if isinstance(found, tuple) else (found,):
            if isinstance(value, StandIn):
                raise PandaError(
                    f"{cls.__name__}: its forward returned a recorded tensor, whose gradient would "
                    "be lost; make the recorded tensor outside, or compute on in it"
                )
        deferred = [a for a in args if isinstance(a, StandIn)]
        # Inside another one nothing but tensors may come out.
        return deferred[0].keep(found, given) if deferred and not names else found

    return classmethod(apply)


def _giving_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    name = CheckpointFunction.__name__
    return lambda *args, **kwargs: as_tensors(function(*args, **kwargs), name)


def _through_sink(apply: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """DDP's identity on a model's outputs: a stand-in's own tensors go through it instead.

    So DDP's backward hook sees the gradients of the loss, and nothing is materialised.
    """
    parts = [
        list(a.tensors()) if isinstance(a, StandIn) and not a.is_materialised else [a] for a in args
    ]
    found = list(apply(*as_tensors([item for part in parts for item in part], "_DDPSink")))
    outputs = []
    # From the end: the arguments that come first are DDP's own, and are not given back.
    for value, part in zip(reversed(args), reversed(parts)):
        if len(found) < len(part):
            break
        values = [found.pop() for _ in part][::-1]
        is_deferred = isinstance(value, StandIn) and not value.is_materialised
        outputs.append(value.reading(values) if is_deferred else values[0])
    return tuple(reversed(outputs))


def find_tensors(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """DDP's search for the tensors of an output, from whose graph it learns what was used."""

    def _find_tensors(obj: Any) -> Any:
        if not isinstance(obj, StandIn):
            return original(obj)
        if obj.is_materialised:
            return original(obj.materialise("_find_tensors"))
        # A parameter has no graph of its own: a view of it leads to it.
        return [t if t.grad_fn is not None else t.view_as(t) for t in obj.tensors()]

    return _find_tensors
