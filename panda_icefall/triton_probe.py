"""One small Triton kernel: whether the compiler works at all. Imports Triton, so load it late."""

import torch
import triton
import triton.language as tl


def run(device: torch.device) -> None:
    """Compile a kernel for a device and run it.

    Raises:
      Exception: whatever Triton and the compilers that it calls raise.
      RuntimeError: the kernel did something else than it was written for.
    """
    numbers = torch.zeros(8, device=device)
    with torch.cuda.device_of(numbers):
        _add_place[(2,)](numbers, 4)
    if numbers.tolist() != list(range(8)):
        raise RuntimeError(f"a kernel wrote {numbers.tolist()}, expected 0 to 7")


@triton.jit
def _add_place(numbers, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(numbers + place, tl.load(numbers + place) + place)
