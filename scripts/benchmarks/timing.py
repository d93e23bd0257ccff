"""Times of methods against each other: interleaved in one process, every sample kept."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.steps import TrainingStep


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
    works: Mapping[str, TrainingStep | Callable[[], Any]],
    repeats: int,
    device: torch.device,
    warm_ups: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each work, `repeats` of them; of a step without putting its method in place.

    Every round runs each once, so that whatever else the machine does meets all of them. The first
    `warm_ups` rounds are not timed: in them kernels are compiled and chosen, where the caller has
    not run each work before.
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    for i in range(warm_ups + repeats):
        for name, work in works.items():
            is_step = isinstance(work, TrainingStep)
            with work.applied() if is_step else contextlib.nullcontext():
                seconds = seconds_of(work.compute if is_step else work, device)
            if i >= warm_ups:
                samples[name].append(seconds)
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


def quartiles(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of at least one sample, in seconds."""
    q1, median, q3 = statistics.quantiles(samples, n=4) if len(samples) > 1 else [samples[0]] * 3
    return {"seconds": median, "seconds_q1": q1, "seconds_q3": q3}
