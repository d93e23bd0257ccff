"""Peak memory of a stretch of a run: the CUDA allocator's, or the process's resident set."""

import contextlib
import ctypes
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

__all__ = ["MemoryProbe", "MemoryReading", "Part", "process_peak_bytes", "return_free_memory"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK_RSS = "5"  # proc(5): resets the peak resident set size (VmHWM) to the current one

# The peak of each device before it was last reset here.
_earlier_peak_bytes: dict[str, int] = {}


@dataclass(frozen=True)
class MemoryReading:
    """Memory at one moment, and its peak since :meth:`MemoryProbe.start`; all sizes in bytes.

    Attributes:
      device: ``cpu`` or the CUDA device's name with index.
      current_bytes: Allocated bytes on CUDA, resident set on CPU.
      peak_bytes: The largest ``current_bytes`` since the probe was started.
      reserved_bytes: What the CUDA caching allocator holds; ``None`` on CPU.
      is_since_start: The peak could not be reset and is that of the whole process.
      peak_reserved_bytes: The largest ``reserved_bytes`` since the probe was started.
    """

    device: str
    current_bytes: int
    peak_bytes: int
    reserved_bytes: int | None = None
    is_since_start: bool = False
    peak_reserved_bytes: int | None = None

    def as_row(self) -> dict[str, Any]:
        """The reading under the names that the memory log uses."""
        if self.reserved_bytes is None:
            return {
                "device": self.device,
                "rss_bytes": self.current_bytes,
                "peak_rss_bytes": self.peak_bytes,
                "peak_is_since_start": self.is_since_start,
            }
        return {
            "device": self.device,
            "allocated_bytes": self.current_bytes,
            "reserved_bytes": self.reserved_bytes,
            "peak_bytes": self.peak_bytes,
            "peak_reserved_bytes": self.peak_reserved_bytes,
        }


@dataclass(frozen=True)
class Part:
    """All stretches of one phase that have the same name.

    Attributes:
      seconds: Their sum.
      stretches: How many there were.
      reading: The memory at the end of the last one, and the peak over all of them, in bytes.
    """

    seconds: float
    stretches: int
    reading: MemoryReading

    def __add__(self, other: "Part") -> "Part":
        """Both one after the other; ``other`` is the later one."""
        reading = replace(
            other.reading,
            peak_bytes=max(self.reading.peak_bytes, other.reading.peak_bytes),
            peak_reserved_bytes=_larger(
                self.reading.peak_reserved_bytes, other.reading.peak_reserved_bytes
            ),
            is_since_start=self.reading.is_since_start or other.reading.is_since_start,
        )
        stretches = self.stretches + other.stretches
        return Part(self.seconds + other.seconds, stretches, reading)

    def as_row(self) -> dict[str, Any]:
        """The part under the names that the memory log uses."""
        return {
            "seconds": self.seconds,
            "stretches": self.stretches,
            **self.reading.as_row(),
        }


class MemoryProbe:
    """Measures one device.

    Args:
      device: A CPU or CUDA device. On CUDA, starting and reading synchronise, and starting resets
        the allocator's peaks for the whole process, ``torch.cuda.max_memory_allocated`` and
        ``max_memory_reserved``.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self._is_since_start = False

    def start(self) -> None:
        """Begin a stretch: the next :meth:`read` gives the peak since now."""
        peak_bytes = process_peak_bytes(self.device)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._begin(peak_bytes)

    def cut(self) -> MemoryReading:
        """:meth:`read` and :meth:`start` at once: the device is asked once."""
        reading = self.read()
        self._begin(_at_least_earlier(self.device, reading.peak_bytes))
        return reading

    def _begin(self, peak_bytes: int) -> None:
        _earlier_peak_bytes[str(self.device)] = peak_bytes
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK_RSS)
            self._is_since_start = False
        except OSError:
            self._is_since_start = True

    def read(self) -> MemoryReading:
        """The memory now and its peak since :meth:`start`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            # Each of torch's functions for one of these asks for all of them.
            statistics = torch.cuda.memory_stats(self.device)
            return MemoryReading(
                device=str(self.device),
                current_bytes=statistics.get("allocated_bytes.all.current", 0),
                peak_bytes=statistics.get("allocated_bytes.all.peak", 0),
                reserved_bytes=statistics.get("reserved_bytes.all.current", 0),
                peak_reserved_bytes=statistics.get("reserved_bytes.all.peak", 0),
            )
        current, peak = _resident_set()
        return MemoryReading(
            device="cpu",
            current_bytes=current,
            peak_bytes=max(current, peak),
            is_since_start=self._is_since_start,
        )


def process_peak_bytes(device: torch.device) -> int:
    """The most that this process has had, resets by probes left out of it; without a sync.

    Args:
      device: CUDA: bytes that the allocator gave out on it; CPU: the resident set.
    """
    is_cuda = device.type == "cuda"
    now = torch.cuda.max_memory_allocated(device) if is_cuda else _resident_set()[1]
    return _at_least_earlier(device, now)


def _at_least_earlier(device: torch.device, peak_bytes: int) -> int:
    return max(_earlier_peak_bytes.get(str(device), 0), peak_bytes)


def _larger(one: int | None, other: int | None) -> int | None:
    return other if one is None or other is None else max(one, other)


def return_free_memory() -> None:
    """Have the C library hand freed memory back to the system, where it can (glibc).

    Without it the second of two measured stretches reuses what the first one freed, and its
    resident set does not show it.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident_set() -> tuple[int, int]:
    """Resident bytes of this process, now and at its peak."""
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        current, highest = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return current, highest
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return peak_bytes, peak_bytes
