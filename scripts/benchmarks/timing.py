"""Times of methods against each other: interleaved in one process, every sample kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def interleaved_samples(
    works: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each work, `repeats` of them.

    Every round runs each once, so that whatever else the machine does meets all of them. The
    caller has run each before: nothing here warms up.
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            samples[name].append(seconds_of(work, device))
    return samples


def times(samples: Sequence[float]) -> dict[str, Any]:
    """What a row says of its time.

    The minimum is the time on a quiet machine: other work only adds to it. The median is what the
    machine gave while it was measured.
    """
    return {
        "samples_s": list(samples),
        "seconds_min": min(samples, default=0.0),
        "seconds": statistics.median(samples) if samples else 0.0,
    }
