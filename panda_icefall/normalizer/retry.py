"""Tiles that do not fit the memory: once more, with half the workspace."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["RETRYING", "is_out_of_memory", "with_one_retry"]

_Result = TypeVar("_Result")

RETRYING = "trying once more with half of it"  # by which a log's line of a retry is known

_REMEDY = (
    "panda: half the workspace did not fit either; give a smaller workspace "
    "(--panda-workspace-mib, or workspace_mib of apply()), or shorter batches (--max-duration)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch has failed; the CPU's raises a plain ``RuntimeError``."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def with_one_retry(run: Callable[[Any], _Result], call: Any) -> _Result:
    """``run(call)``; where its tiles do not fit, once more with half the workspace.

    Args:
      run: makes the tiles of a call, and counts nothing before they are made.
      call: a ``panda_icefall.normalizer.node.Call``.

    Raises:
      RuntimeError, MemoryError: torch's own error with what to set, where they do not fit either.
    """
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
        "panda: a tile of %d MiB did not fit the memory (%s); %s",
        call.workspace_bytes >> 20, str(first).partition("\n")[0], RETRYING,
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
