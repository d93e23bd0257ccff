"""GEMMs of half-precision values that are kept in float32: on tensor cores, without an error.

TF32 rounds the operands of a float32 GEMM to 11 significant bits and accumulates in float32. All
bfloat16 and float16 values have that many, so their products stay exact; a gradient that meets them
is rounded no more than the dense path's half-precision one. It takes an Ampere GPU or newer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def holds_half(tensor: torch.Tensor, rounded_to: torch.dtype | None) -> bool:
    """Whether a CUDA tensor, rounded to a dtype if one is given, holds half-precision values."""
    dtype = tensor.dtype if rounded_to is None else rounded_to
    return tensor.is_cuda and dtype in (torch.bfloat16, torch.float16)


@contextmanager
def tensor_cores(wanted: bool) -> Iterator[None]:
    """A context in which float32 GEMMs on CUDA may use TF32, whatever the process allows outside.

    Args:
      wanted: otherwise the context changes nothing.
    """
    matmul = torch.backends.cuda.matmul
    # torch 2.9 has ``fp32_precision`` beside ``allow_tf32`` and refuses to read the older one where
    # only the newer one was written: so the older one is written, and the newer one put back.
    has_precision = hasattr(torch.backends, "fp32_precision")
    is_allowed = matmul.fp32_precision == "tf32" if has_precision else matmul.allow_tf32
    if not wanted or is_allowed:
        yield
        return
    before = matmul.fp32_precision if has_precision else None
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = False
        if has_precision:
            matmul.fp32_precision = before
