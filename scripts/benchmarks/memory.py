"""The peak of a process above a starting point.

CPU (Linux): resident memory; the kernel's high-water mark is reset through /proc/self/clear_refs.
CUDA: the caching allocator's own figures. The cap is the package's own.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from panda_icefall.memory_limit import cap_memory, status_bytes, tells_of_no_memory

__all__ = ["CHILD_ENVIRONMENT", "PeakMeter", "cap_memory", "is_out_of_memory"]

# For a process whose peak is measured: large tensors go back to the system when freed. With glibc's
# default, which moves the limit from 128 KiB to 32 MiB, fragments of the heap were up to half of a
# baseline's peak. A limit low enough for the smallest tensors, too, takes another 4 MiB off a tiled
# loss's peak, and makes it ten times as slow by page faults.
CHILD_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
}


class PeakMeter:
    """Bytes that a process held at its peak, above what it held at `start`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0

    def start(self) -> None:
        """Forget earlier peaks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return
        ctypes.CDLL(None).malloc_trim(0)
        self._before = status_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The peak since `start`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return status_bytes("VmHWM") - self._before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocator's refusal."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and tells_of_no_memory(str(error))
