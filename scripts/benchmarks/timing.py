"""Times of methods against each other: interleaved in one process, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, Callable

import torch


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, on CUDA by events."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved_medians(
    works: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each work.

    Every round runs each once, so that whatever else the machine does meets all of them. The
    caller has run each before: nothing here warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(seconds_of(work, device))
    return {name: statistics.median(values) for name, values in seconds.items()}
