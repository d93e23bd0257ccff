"""Row kernels in Triton: what ``torch_rows`` does to a tile of logits, one read of it each.

``fold`` follows the online normaliser of Milakov and Gimelshein (arXiv 1805.02867), ``gradient``
is elementwise but for the sum over rows. Sums and exponentials are in the dtype of ``peak`` and
``log_z``. Tiles have contiguous rows, all else is contiguous. This module imports Triton, so it is
imported where its functions are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from panda_icefall.normalizer.plan import SUMMED_ROWS, ClassTile

ADDS_BIAS = True
# Classes that one program of ``fold`` holds in registers: 16 values a thread at 256 threads.
LARGEST_BLOCK = 4096
# Halved down to this where the last one would be mostly empty.
LEAST_BLOCK = 256
# Rows times classes that one of ``gradient`` does: 16 values a thread at 128 threads.
GRADIENT_BLOCK = 2048
GRADIENT_CLASSES = 512


def fold(
    tile: Tensor,
    bias: Tensor | None,
    at: ClassTile,
    ids: Tensor,
    peak: Tensor,
    total: Tensor,
    chosen: Tensor,
) -> None:
    """Take one class tile into the running log-sum-exp and selected logits of its rows.

    Equal to ``torch_rows.fold``, but for ``tile``, which is only read. One launch.
    """
    n, width = tile.shape
    if n == 0:
        return
    block = min(triton.next_power_of_2(width), LARGEST_BLOCK)
    while block > LEAST_BLOCK and triton.cdiv(width, block) * block > 1.25 * width:
        block //= 2
    # Of one value, Triton 3.2's interpreter stores what the mask leaves out.
    ids_block = max(triton.next_power_of_2(ids.shape[1]), 2)
    with torch.cuda.device_of(tile):
        _fold_row[(n,)](
            tile, tile.stride(0), bias, ids, chosen, peak, total, at.low, at.width, width,
            ids.shape[1], ids_block, block,
            num_warps=min(max(block // 512, 1), 8),
        )  # fmt: skip


def gradient(
    tile: Tensor,
    bias: Tensor | None,
    at: ClassTile,
    ids: Tensor,
    log_z: Tensor,
    softmax_scale: Tensor,
    adjoints: Tensor,
    limits: Tensor | None,
    out: Tensor,
    bias_grad: Tensor | None,
) -> None:
    """The loss's gradient with respect to one class tile of logits.

    Equal to ``torch_rows.gradient``. One launch, and a small one for the bias: each program adds up
    ``SUMMED_ROWS`` rows in their order, the first one to what is there, so that the sums are the
    same every time.
    """
    n, width = tile.shape
    if n == 0:
        return
    assert out.stride() == tile.stride()
    block = min(triton.next_power_of_2(width), GRADIENT_CLASSES)
    parts = triton.cdiv(n, SUMMED_ROWS)
    sums = None if bias_grad is None else bias_grad.new_empty(parts, at.width)
    with torch.cuda.device_of(tile):
        _gradient_block[(parts, triton.cdiv(width, block))](
            tile, out, tile.stride(0), bias, bias_grad, sums, ids, adjoints, log_z, softmax_scale,
            limits, at.low, n, at.width, width, ids.shape[1], SUMMED_ROWS,
            min(SUMMED_ROWS, GRADIENT_BLOCK // block), block, num_warps=4,
        )  # fmt: skip
    if bias_grad is not None and sums is not None:
        torch.sum(sums, dim=0, out=bias_grad)


# ``low`` and ``rows`` differ from tile to tile, and nothing is gained by what they divide by.
@triton.jit(do_not_specialize=["low"])
def _fold_row(
    tile, row_stride, bias, ids, chosen, peak, total, low, classes, width, K,
    K_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row. Whole vectors are loaded, up to the width, where classes end earlier."""
    # 64-bit offsets: row * stride passes 2^31 in large tiles.
    row = tl.program_id(0).to(tl.int64)
    tile += row * row_stride
    infinity = float("inf")
    # The first classes find nothing that counts.
    high = tl.where(low == 0, -infinity, tl.load(peak + row))
    summed = tl.where(low == 0, 0.0, tl.load(total + row))
    column = tl.arange(0, BLOCK)
    for start in range(0, width, BLOCK):
        at = start + column
        values = tl.load(tile + at, mask=at < width, other=0.0).to(summed.dtype)
        if bias is not None:
            values += tl.load(bias + at, mask=at < classes, other=0.0)
        values = tl.where(at < classes, values, -infinity)
        new_high = tl.maximum(high, tl.max(values, axis=0))
        shift = tl.where(tl.abs(new_high) == infinity, 0.0, new_high)
        # A NaN need not reach the maximum, but it does reach the sum, and so log_z.
        summed = summed * tl.exp(high - shift) + tl.sum(tl.exp(values - shift), axis=0)
        high = new_high
    tl.store(peak + row, high)
    tl.store(total + row, summed)

    k = tl.arange(0, K_BLOCK)
    at = tl.load(ids + row * K + k, mask=k < K, other=-1) - low
    inside = (k < K) & (at >= 0) & (at < classes)
    values = tl.load(tile + at, mask=inside, other=0.0).to(summed.dtype)
    if bias is not None:
        values += tl.load(bias + at, mask=inside, other=0.0)
    tl.store(chosen + row * K + k, values, mask=inside)


@triton.jit(do_not_specialize=["low", "rows"])
def _gradient_block(
    tile, out, row_stride, bias, bias_grad, sums, ids, adjoints, log_z, softmax_scale, limits, low,
    rows, classes, width, K, PROGRAM_ROWS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per block of classes and ``PROGRAM_ROWS`` rows, of which it does ``ROWS`` at
    once; ``sums`` ``[programs, classes]``."""
    program = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset = tl.zeros([BLOCK], log_z.dtype.element_ty)
    if bias is not None:
        offset += tl.load(bias + at, mask=at < classes, other=0.0)
    summed = tl.zeros([BLOCK], log_z.dtype.element_ty)
    if sums is not None:
        summed += tl.load(bias_grad + at, mask=(at < classes) & (program == 0), other=0.0)
    begin = program * PROGRAM_ROWS
    for first in range(begin, tl.minimum(begin + PROGRAM_ROWS, rows), ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        is_row = row < rows
        place = row[:, None] * row_stride + at[None, :]
        mask = is_row[:, None] & (at < width)[None, :]
        normalizer = tl.load(log_z + row, mask=is_row, other=0.0)
        scale = tl.load(softmax_scale + row, mask=is_row, other=0.0)
        logits = tl.load(tile + place, mask=mask, other=0.0).to(normalizer.dtype)
        grad = scale[:, None] * tl.exp(logits + offset[None, :] - normalizer[:, None])
        # Compared instead of scattered: duplicates add up in the order of k, without atomics.
        for k in range(K):
            selected = tl.load(ids + row * K + k, mask=is_row, other=-1) - low
            adjoint = tl.load(adjoints + row * K + k, mask=is_row, other=0.0)
            grad += tl.where(at[None, :] == selected[:, None], adjoint[:, None], 0.0)
        if limits is not None:
            # Not by minimum and maximum, which need not keep a NaN.
            bound = tl.load(limits + row, mask=is_row, other=0.0)[:, None]
            grad = tl.where(grad > bound, bound, tl.where(grad < -bound, -bound, grad))
        summed += tl.sum(tl.where(is_row[:, None], grad, 0.0), axis=0)
        tl.store(out + place, grad.to(out.dtype.element_ty), mask=mask)
    if sums is not None:
        tl.store(sums + program.to(tl.int64) * classes + at, summed, mask=at < classes)
