"""Tiles that do not fit the memory: once more, with half the workspace."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["is_out_of_memory", "retrying_backward", "retrying_forward"]

_REMEDY = (
    "panda: half the workspace did not fit either; give a smaller workspace "
    "(--panda-workspace-mib, or workspace_mib of apply()), or shorter batches (--max-duration)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch has failed; the CPU's raises a plain ``RuntimeError``."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def retrying_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """An autograd node's ``forward(ctx, call, ...)`` that begins again where its tiles do not fit.

    The backward of that node goes on with the smaller tiles.

    Raises of the result: torch's own error with what to set, where they do not fit either.
    """

    @functools.wraps(forward)
    def run(ctx: Any, call: Any, *args: Any) -> Any:
        return _twice(lambda given: forward(ctx, given, *args), call)

    return run


def retrying_backward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """The same of ``backward(ctx, ...)``, which finds its call in ``ctx.call``."""

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Any) -> Any:
        def of(call: Any) -> Any:
            ctx.call = call
            return backward(ctx, *grads)

        return _twice(of, ctx.call)

    return run


def _twice(run: Callable[[Any], Any], call: Any) -> Any:
    try:
        return run(call)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Its traceback holds the frames, and so the tensors, of what has failed.
        first = error.with_traceback(None)
    half = call.workspace_bytes // 2
    call.counters.add(out_of_memory_retries=1)
    logging.warning(
        "panda: a tile of %d MiB did not fit the memory (%s); trying once more with half of it",
        call.workspace_bytes >> 20, str(first).partition("\n")[0],
    )  # fmt: skip
    options = dataclasses.replace(call.options, workspace_bytes=half)
    smaller = dataclasses.replace(call, options=options, workspace_bytes=half)
    try:
        return run(smaller)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise type(error)(f"{error}; {_REMEDY}") from None
    except ValueError:  # the half holds no row
        raise type(first)(f"{first}; {_REMEDY}") from None
