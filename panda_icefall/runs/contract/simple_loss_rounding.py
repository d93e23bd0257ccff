"""Simple losses that are the same but for rounding, to see what that does to gradients.

k2's recursion adds up float32 log-probs to scores of some thousand nats, and its occupations are
differences of such scores: several digits less exact than the log-probs it reads. Two
implementations whose log-probs differ in the last bit have gradients that far apart.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import Tensor

from panda_icefall.routing.hosts import Kind, names_of
from panda_icefall.runs.contract.wrapped_function import wrapped_function

__all__ = ["simple_losses_rounded_otherwise"]

_SEED = 0


@contextlib.contextmanager
def simple_losses_rounded_otherwise() -> Iterator[None]:
    """Shift ``am`` of every frame and ``lm`` of every state by a number, in the enclosed block.

    The numbers, drawn between -1 and 1 from a seed of their own, cancel against the normalisers:
    log-probs, loss and gradients stay the same but for rounding.
    """
    with contextlib.ExitStack() as stack:
        for name in names_of(Kind.SIMPLE_LOSS):
            stack.enter_context(wrapped_function(name, _on_shifted_inputs))
        yield


def _on_shifted_inputs(original: Callable[..., Any], given: inspect.BoundArguments) -> Any:
    for name in ("lm", "am"):
        given.arguments[name] = _shifted(given.arguments[name])
    return original(*given.args, **given.kwargs)


def _shifted(logits: Tensor) -> Tensor:
    """``[B, rows, C]`` plus one number for each row."""
    generator = torch.Generator(logits.device).manual_seed(_SEED)
    rows = torch.empty_like(logits[..., :1], requires_grad=False)
    return logits + rows.uniform_(-1, 1, generator=generator)
