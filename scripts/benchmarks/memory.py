"""The peak of a process above a starting point, and a cap on what it may hold.

CPU (Linux): resident memory; the kernel's high-water mark is reset through /proc/self/clear_refs.
The cap is RLIMIT_DATA: heap and private writable mappings count, the mapped code of torch's
libraries (gigabytes of address space that RLIMIT_AS would count) does not. CUDA: the caching
allocator's own figures and its cap.
"""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import torch

# For a process whose peak is measured: large tensors go back to the system when freed. With glibc's
# default, which moves the limit from 128 KiB to 32 MiB, fragments of the heap were up to half of a
# baseline's peak. A limit low enough for the smallest tensors, too, takes another 4 MiB off a tiled
# loss's peak, and makes it ten times as slow by page faults.
CHILD_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
}

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")


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
        self._before = _status_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The peak since `start`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return _status_bytes("VmHWM") - self._before


def cap_memory(cap_bytes: int, device: torch.device) -> None:
    """Let this process hold at most `cap_bytes` more than it holds now (CUDA: in all)."""
    if device.type == "cuda":
        # It takes no device without an index.
        index = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total), index)
        return
    limit = _status_bytes("VmData") + cap_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocator's refusal."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status: got no {field}, expected Linux's; run on Linux")
