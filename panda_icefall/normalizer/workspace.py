"""How much scratch a tile takes where the user says nothing: by the caches of the device.

By nothing that changes while a process runs: equal inputs are cut into equal tiles.

On a CPU with 1 MiB of L2 for each core and 32 MiB of L3, two threads, the whole transducer loss
(B=20 T=145 s_range=5 C=4336 H=512, ``scripts/bench_workspace.py``) was fastest with 64 MiB in one
run and with 8 MiB in another; with 16 MiB, half the last-level cache, it took at most 7 % more in
both, with 64 MiB up to 27 %, with 4 MiB up to 20 %, with 2 MiB 36 %, where GEMMs become too small.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

MIB = 2**20
# Between tiles too small for a GEMM and tiles that no cache holds.
CPU_BOUNDS = (8 * MIB, 32 * MIB)
CPU_UNKNOWN = 16 * MIB
# A GPU's GEMMs need more rows to fill it than its cache holds.
CUDA_BOUNDS = (64 * MIB, 256 * MIB)
# At most this share of its memory, which a training run fills with other things.
CUDA_SHARE = 1 / 64

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def auto_workspace_bytes(device: torch.device) -> int:
    """Scratch of a tile on a device, in bytes.

    CPU: half of the last-level cache, 8 to 32 MiB; 16 MiB where Linux does not tell. CUDA: twice
    the L2 cache, 64 to 256 MiB, and at most a 64th of the device's memory. The op takes more where
    one tile of a useful size needs more.
    """
    if device.type != "cuda":
        cache = last_level_cache_bytes(_CACHES)
        return CPU_UNKNOWN if cache is None else _within(CPU_BOUNDS, cache // 2)
    return _gpu_workspace_bytes(
        torch.cuda.current_device() if device.index is None else device.index
    )


@functools.cache
def _gpu_workspace_bytes(index: int) -> int:
    """Looked up once for each GPU, as every loss asks for it."""
    properties = torch.cuda.get_device_properties(index)
    # Older torch does not tell.
    wanted = _within(CUDA_BOUNDS, 2 * getattr(properties, "L2_cache_size", 0))
    return min(wanted, int(properties.total_memory * CUDA_SHARE))


@functools.cache
def last_level_cache_bytes(folder: Path) -> int | None:
    """Size of the largest of a core's caches, from sysfs; None where it cannot be read."""
    sizes = []
    for file in folder.glob("index*/size"):
        try:
            text = file.read_text().strip()
            sizes.append(int(text[:-1]) * _UNITS[text[-1]])
        except (OSError, ValueError, KeyError, IndexError):
            return None
    return max(sizes, default=None)


def _within(bounds: tuple[int, int], wanted: int) -> int:
    low, high = bounds
    return max(low, min(high, wanted))
