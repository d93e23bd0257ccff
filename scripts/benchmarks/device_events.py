"""What one call does to its device: kernels, how long it is busy, and where the host waits.

On CUDA from torch's profiler and from its warnings of synchronising operations. On a CPU, for the
form: operations that call no other one stand for kernels, those that give a value to Python for
waits.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

REPO = Path(__file__).resolve().parents[2]
_LAUNCHES = ("cudaLaunch", "cuLaunch", "hipLaunch", "hipModuleLaunch")
_COPIES = ("cudaMemcpy", "cudaMemset", "hipMemcpy", "hipMemset")
_CPU_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")


@dataclass(frozen=True)
class Kernel:
    """All calls of one kernel: its name, how many, and their seconds."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class DeviceEvents:
    """One call of a work.

    Attributes:
      busy_seconds: during which at least one kernel or copy ran.
      launches, copies: kernels started, and copies and fills by the driver.
      waits: how often the host waited for a stream or an event.
      heaviest: kernels by their time, all of them, descending.
    """

    busy_seconds: float
    launches: int
    copies: int
    waits: int
    heaviest: list[Kernel] = field(default_factory=list)


def events_of(work: Callable[[], Any], device: torch.device) -> DeviceEvents:
    """Profile one call; the caller has run it before."""
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if is_cuda else [])
    with torch.profiler.profile(activities=activities) as profile:
        work()
        if is_cuda:
            torch.cuda.synchronize(device)  # a device's wait, which is not counted
    events = list(profile.events())
    kernels = [e for e in events if (_is_on_gpu(e) if is_cuda else _is_leaf(e))]
    names = [e.name for e in events if e.device_type == DeviceType.CPU]
    if is_cuda:
        launches = sum(name.startswith(_LAUNCHES) for name in names)
        waits = sum(name.endswith(("StreamSynchronize", "EventSynchronize")) for name in names)
    else:
        launches, waits = len(kernels), sum(name in _CPU_WAITS for name in names)
    spans = [(e.time_range.start, e.time_range.end) for e in kernels]
    return DeviceEvents(
        busy_seconds=covered(spans) / 1e6,
        launches=launches,
        copies=sum(name.startswith(_COPIES) for name in names),
        waits=waits,
        heaviest=_by_name(kernels),
    )


def _is_on_gpu(event: Any) -> bool:
    """A kernel or a copy, and no range that was given a name in Python."""
    is_range = getattr(event, "is_user_annotation", False)
    return event.device_type == DeviceType.CUDA and not is_range


def _is_leaf(event: Any) -> bool:
    return event.name.startswith("aten::") and not event.cpu_children


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of a union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def _by_name(events: list[Any]) -> list[Kernel]:
    calls: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for event in events:
        calls[event.name] += 1
        seconds[event.name] += (event.time_range.end - event.time_range.start) / 1e6
    return [Kernel(name, calls[name], s) for name, s in seconds.most_common()]


def sync_sources(work: Callable[[], Any]) -> Counter[str]:
    """How often each line of Python makes the host wait for CUDA, as torch warns; empty on a CPU.

    A wait inside an autograd node is told at the line of Python that runs in its thread.
    """
    if not torch.cuda.is_available():
        return Counter()
    found: Counter[str] = Counter()
    before = torch.cuda.get_sync_debug_mode()

    def note(message: Any, category: Any, filename: str, lineno: int, *others: Any) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            frames = [f for f in traceback.extract_stack() if str(REPO) in f.filename]
            at = [f for f in frames if f.name != "note"]
            where = f"{at[-1].filename}:{at[-1].lineno}" if at else f"{filename}:{lineno}"
            found[where.replace(f"{REPO}/", "")] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return found
