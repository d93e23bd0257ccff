"""A function of the module that routing patches, wrapped for the length of a block."""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any, Callable

from panda_icefall import routing
from panda_icefall.swaps import Swaps

__all__ = ["wrapped_function"]

Around = Callable[[Callable[..., Any], inspect.BoundArguments], Any]


@contextlib.contextmanager
def wrapped_function(name: str, around: Around) -> Iterator[None]:
    """Let ``around(original, arguments)`` answer the calls of a function.

    It is replaced where routing replaces functions, on top of whatever stands there. A module
    without such a function stays as it is.

    Args:
      name: The function's.
      around: Given the function that was there and the call's arguments, bound to its parameters,
        without defaults.
    """
    module: Any = routing.patched_module()
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, signature.bind(*args, **kwargs))

    with Swaps() as swaps:
        swaps.replace(module, name, wrapper)
        yield
