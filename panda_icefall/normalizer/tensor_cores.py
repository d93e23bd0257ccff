"""GEMMs of half-precision values with sums in float32: on tensor cores, without an error.

From torch 2.8 on, a GEMM on CUDA takes half operands and gives a float32 result. Elsewhere the
values are widened and TF32 multiplies them: it rounds the operands of a float32 GEMM to 11
significant bits and accumulates in float32. All bfloat16 and float16 values have that many, so
their products stay exact; a gradient that meets them is rounded no more than the dense path's
half-precision one. TF32 takes an Ampere GPU or newer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.dtypes import HALVES


@dataclass(frozen=True)
class Gemms:
    """How operands of a dtype meet, and where their products are summed.

    Attributes:
      operands: dtype that both operands have.
      sums: dtype of the results, float32 or float64.
      holds_half: the operands are half-precision values on CUDA, whatever dtype holds them.
      adds: half products can be added to a float32 tensor in one launch.
    """

    operands: torch.dtype
    sums: torch.dtype
    holds_half: bool = False
    adds: bool = True

    @classmethod
    def of(cls, tensor: Tensor, rounded_to: torch.dtype | None, sums: torch.dtype) -> Gemms:
        """The best GEMMs for a tensor, rounded to a dtype if one is given."""
        dtype = tensor.dtype if rounded_to is None else rounded_to
        if not holds_half(tensor, rounded_to):
            return cls(sums, sums)
        multiplies, adds = widening_gemms(tensor.device, dtype)
        return cls(dtype, sums, True, adds) if multiplies else cls(sums, sums, True)

    @property
    def widens(self) -> bool:
        """Whether the results have another dtype than the operands."""
        return self.operands != self.sums

    def multiply(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        """``left @ right`` in ``out``."""
        if self.widens:
            return torch.mm(left, right, out_dtype=self.sums, out=out)
        with tf32(self.holds_half):
            return torch.mm(left, right, out=out)

    def add_product(self, start: Tensor, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        """``start + left @ right`` in ``out``, which may be ``start``, or what broadcasts to it."""
        if not self.widens:
            with tf32(self.holds_half):
                return torch.addmm(start, left, right, out=out)
        if self.adds:
            return torch.addmm(start, left, right, out_dtype=self.sums, out=out)
        if out is start:
            return out.add_(torch.mm(left, right, out_dtype=self.sums))
        return torch.mm(left, right, out_dtype=self.sums, out=out).add_(start)


def holds_half(tensor: Tensor, rounded_to: torch.dtype | None) -> bool:
    """Whether a CUDA tensor, rounded to a dtype if one is given, holds half-precision values."""
    dtype = tensor.dtype if rounded_to is None else rounded_to
    return tensor.is_cuda and dtype in HALVES


@functools.cache
def widening_gemms(device: torch.device, dtype: torch.dtype) -> tuple[bool, bool]:
    """Whether half operands give a float32 product on a device, and add it to a float32 tensor.

    Tried on 16 x 16 numbers, once per process, device and dtype: torch before 2.8 has neither,
    the first ones after it refuse a float32 tensor to add to, and not every GPU has every dtype.
    """
    ones = torch.ones(16, 16, dtype=dtype, device=device)
    total = torch.ones(16, 16, device=device)

    def gives(expected: float, product: Callable[[], Tensor]) -> bool:
        try:
            return bool((product() == expected).all())
        except torch.cuda.OutOfMemoryError:  # says nothing about GEMMs
            raise
        except (RuntimeError, TypeError):
            return False

    return (
        gives(16.0, lambda: torch.mm(ones, ones, out_dtype=torch.float32)),
        gives(17.0, lambda: torch.addmm(total, ones, ones, out_dtype=torch.float32, out=total)),
    )


def scale_for_float16(*adjoints: Tensor) -> Tensor:
    """The power of two ``[]`` by which adjoints make gradients that float16 holds, no wait.

    The largest one then lies between 2^7 and 2^8: sums of some of them stay below float16's 65,504,
    however large the scale of the loss is, and what is 2^-22 of it keeps all bits. 1 where an
    adjoint is not finite, which must show, or where all are 0.
    """
    largest = torch.stack([t.abs().max() for t in adjoints if t.numel()] or [torch.zeros(())]).max()
    _, exponent = torch.frexp(largest)
    scale = torch.exp2((8 - exponent).clamp(-100, 100).to(largest.dtype))
    return torch.where(largest.isfinite() & (largest > 0), scale, torch.ones_like(scale))


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """A context in which float32 GEMMs on CUDA may use TF32, whatever the process allows outside.

    Args:
      wanted: otherwise the context changes nothing.
    """
    if not wanted:
        yield
        return
    matmul = torch.backends.cuda.matmul
    # torch 2.9 has ``fp32_precision`` beside ``allow_tf32`` and refuses to read the older one where
    # only the newer one was written: so the older one is written, and the newer one put back.
    has_precision = hasattr(torch.backends, "fp32_precision")
    is_allowed = matmul.fp32_precision == "tf32" if has_precision else matmul.allow_tf32
    if is_allowed:
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
