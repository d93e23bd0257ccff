"""The precisions of a measured step: float32, float32 by TF32 products, half by autocast."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

from panda_icefall.normalizer.autocast import autocast_dtype

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_supported(precision: str, device: torch.device) -> bool:
    """Whether autocast knows it on this device; torch 1.13 has no float16 on a CPU, for one."""
    dtype = HALVES.get(precision)
    if dtype is None:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.autocast(device.type, dtype=dtype):
                return autocast_dtype(device) == dtype
        except RuntimeError:
            return False


def autocast(
    precision: str, device: torch.device
) -> contextlib.AbstractContextManager[torch.autocast | None]:
    """What a forward pass runs under; nothing for float32."""
    dtype = HALVES.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """A block, forward and backward, whose float32 products may be TF32 ones or are not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
