"""Simple losses whose inputs are moved by a last bit, to see what that does to gradients.

k2's recursion adds up float32 log-probs to scores of some thousand nats, and its occupations are
differences of such scores: they are several digits less exact than what the recursion reads. Two
implementations that read the same numbers but for a last bit get gradients that far apart.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, Callable

from torch import Tensor

from panda_icefall.runs.contract.wrapped_function import wrapped_function
from panda_icefall.runs.last_bit import moved_by_last_bit

__all__ = ["simple_losses_moved"]

_SIMPLE_LOSSES = ("rnnt_loss_smoothed", "rnnt_loss_simple")


@contextlib.contextmanager
def simple_losses_moved() -> Iterator[None]:
    """Move ``am`` and ``lm`` of every simple loss of the enclosed block by a last bit."""
    with contextlib.ExitStack() as stack:
        for name in _SIMPLE_LOSSES:
            stack.enter_context(wrapped_function(name, _on_moved_inputs))
        yield


def _on_moved_inputs(original: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    for name in ("lm", "am"):
        value = given.arguments.get(name)
        if isinstance(value, Tensor):
            given.arguments[name] = moved_by_last_bit(value)
    return original(*given.args, **given.kwargs)
