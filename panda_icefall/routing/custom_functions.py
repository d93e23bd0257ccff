"""Custom autograd functions around recorded tensors: they are to get, and give, real ones.

``torch.autograd.Function.apply`` does not ask ``__torch_function__``: a stand-in would pass through
it as an opaque object, and the function's backward would silently be lost.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.replacements import MISSING
from panda_icefall.routing.stand_in import StandIn

_inside = threading.local()


def enclosing_function() -> str | None:
    """The name of the custom function whose forward runs now in this thread, if one does."""
    names: list[str] = getattr(_inside, "names", [])
    return names[-1] if names else None


def function_apply(original: Any) -> classmethod[Any, Any, Any]:
    """``torch.autograd.Function.apply`` that hands on tensors in place of stand-ins.

    Args:
      original: the one to replace, as it stands in the class; ``MISSING`` where it is inherited.
    """

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if original is MISSING:  # torch 1.13 inherits it
            inner = super(torch.autograd.Function, cls).apply
        else:
            inner = original.__get__(None, cls)
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
