"""A limit on the memory of this process, and how to tell that it, or the device's own, was met.

CPU (Linux): the limit is RLIMIT_DATA: heap and private writable mappings count, the mapped code of
torch's libraries (gigabytes of address space that RLIMIT_AS would count) does not. CUDA: that of
torch's caching allocator.
"""

from pathlib import Path

import torch

__all__ = ["cap_memory", "status_bytes", "tells_of_no_memory"]

_STATUS = Path("/proc/self/status")
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "memoryerror",
    "bad_alloc",
    "alloc_failed",  # CUBLAS_STATUS_ and CUDNN_STATUS_
    "resource temporarily unavailable",  # a thread whose stack RLIMIT_DATA leaves no room for
)


def cap_memory(cap_bytes: int, device: torch.device) -> None:
    """Let this process hold at most ``cap_bytes`` more than it holds now (CUDA: in all)."""
    if device.type == "cuda":
        # It takes no device without an index.
        index = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / total), index)
        return
    import resource

    limit = status_bytes("VmData") + cap_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def tells_of_no_memory(text: str) -> bool:
    """Whether a message, or the output of a process, has an allocator's refusal in it."""
    lowered = text.lower()
    return any(words in lowered for words in _NO_MEMORY)


def status_bytes(field: str) -> int:
    """A size of this process as Linux tells it, such as ``VmData``.

    Raises:
      RuntimeError: The system is none that tells it.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS}: got no {field}, expected Linux's; run on Linux")
