"""Row kernels of the simple loss in Triton: what ``rows`` does to a tile, one launch each.

Sums and exponentials are in the dtype of the tile, float32 or float64. This module imports Triton,
so it is imported where its functions are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from panda_icefall.losses.simple_tiled.source import Selected

# Classes that one program holds in registers: 16 values a thread at 256 threads.
LARGEST_BLOCK = 4096


def fold_(
    tile: Tensor,
    peak: Tensor,
    bias: Tensor | None = None,
    mass: Tensor | None = None,
    weights: Tensor | None = None,
    weighted: Tensor | None = None,
) -> Tensor:
    """Take a tile of classes into the running sums of its rows, as ``rows.fold_``.

    Of ``[n, length]`` arguments that are contiguous.
    """
    factor = torch.empty_like(peak)
    if tile.numel():
        block, num_warps = _block(tile.shape[2])
        with torch.cuda.device_of(tile):
            _fold_row[(peak.numel(),)](
                tile, tile.stride(1), bias, peak, mass, weights, weighted, factor, tile.shape[2],
                block, num_warps=num_warps,
            )  # fmt: skip
    return factor


def exp_below_(tile: Tensor, peak: Tensor, bias: Tensor | None = None) -> Tensor:
    """``exp(tile + bias - peak)`` in place, as ``rows.exp_below_``."""
    peak, c = peak.contiguous(), tile.shape[2]
    if tile.numel():
        block, num_warps = _block(c)
        with torch.cuda.device_of(tile):
            _exp_block[(peak.numel(), triton.cdiv(c, block))](
                tile, tile.stride(1), bias, peak, c, block, num_warps=num_warps
            )
    return tile


def gradient_(
    grad: Tensor,
    exp: Tensor,
    out: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    weights: Tensor | None = None,
    selected: Selected | None = None,
) -> Tensor:
    """``(grad + shift + scale * weights) * exp`` into ``out``, as ``rows.gradient_``.

    ``grad`` is only read, and all but it and ``exp`` may have any strides.
    """
    shift, scale = (None if x is None else x.contiguous() for x in (shift, scale))
    ids, low, values = (None, 0, None) if selected is None else selected
    K = 0
    if ids is not None and values is not None:
        ids, values, K = ids.contiguous(), values.contiguous(), ids.shape[1]
    n, length, c = grad.shape
    if grad.numel():
        block, num_warps = _block(c)
        with torch.cuda.device_of(grad):
            _gradient_block[(n * length, triton.cdiv(c, block))](
                grad, grad.stride(1), exp, exp.stride(1), out, out.stride(1), shift, scale, weights,
                ids, values, low, length, c, K,
                block, num_warps=num_warps,
            )  # fmt: skip
    return out


def _block(classes: int) -> tuple[int, int]:
    """Classes per block and warps per program."""
    block = min(triton.next_power_of_2(classes), LARGEST_BLOCK)
    return block, min(max(block // 512, 1), 8)


@triton.jit
def _logits(tile, bias, at, classes):
    """Some logits of a row; -inf beyond the classes of the tile."""
    values = tl.load(tile + at, mask=at < classes, other=float("-inf"))
    if bias is not None:
        values += tl.load(bias + at, mask=at < classes, other=0.0).to(values.dtype)
    return values


@triton.jit
def _fold_row(
    tile, tile_row, bias, peak, mass, weights, weighted, factor, classes,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row; ``x_row`` is the stride of rows in elements."""
    # 64-bit offsets: row * stride passes 2^31 in large tiles.
    row = tl.program_id(0).to(tl.int64)
    tile += row * tile_row
    column = tl.arange(0, BLOCK)
    before = tl.load(peak + row)
    highest = tl.full([BLOCK], float("-inf"), tile.dtype.element_ty)
    for start in range(0, classes, BLOCK):
        highest = tl.maximum(highest, _logits(tile, bias, start + column, classes))
    high = tl.maximum(before, tl.max(highest, axis=0))
    low = tl.where(high == float("-inf"), 0.0, high)
    rescale = tl.exp(before - low)
    total = tl.zeros([BLOCK], tile.dtype.element_ty)
    weighted_total = tl.zeros([BLOCK], tile.dtype.element_ty)
    for start in range(0, classes, BLOCK):
        at = start + column
        # A NaN need not reach the maximum, but it does reach the sums.
        values = tl.exp(_logits(tile, bias, at, classes) - low)
        tl.store(tile + at, values, mask=at < classes)
        total += values
        if weights is not None:
            weighted_total += values * tl.load(weights + at, mask=at < classes, other=0.0)
    tl.store(peak + row, high)
    tl.store(factor + row, rescale)
    if mass is not None:
        tl.store(mass + row, tl.load(mass + row) * rescale + tl.sum(total, axis=0))
    if weights is not None:
        summed = tl.load(weighted + row) * rescale + tl.sum(weighted_total, axis=0)
        tl.store(weighted + row, summed)


@triton.jit
def _exp_block(tile, tile_row, bias, peak, classes, BLOCK: tl.constexpr):
    """One program per row and block of classes: no element depends on another one."""
    row = tl.program_id(0).to(tl.int64)
    tile += row * tile_row
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    high = tl.load(peak + row)
    low = tl.where(high == float("-inf"), 0.0, high)
    values = tl.exp(_logits(tile, bias, at, classes) - low)
    tl.store(tile + at, values, mask=at < classes)


@triton.jit(do_not_specialize=["low"])
def _gradient_block(
    grad, grad_row, exp, exp_row, out, out_row, shift, scale, weights, ids, selected, low, length,
    classes, K,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row and block of classes."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < classes
    values = tl.load(grad + row * grad_row + at, mask=inside, other=0.0)
    if scale is not None:
        values += tl.load(scale + row) * tl.load(weights + at, mask=inside, other=0.0)
    if shift is not None:
        values += tl.load(shift + row)
    values *= tl.load(exp + row * exp_row + at, mask=inside, other=0.0)
    if selected is not None:
        # Compared instead of scattered: a column that repeats adds up in the order of k, without
        # atomics.
        first = row // length * K
        for k in range(K):
            column = tl.load(ids + first + k) - low
            added = tl.load(selected + (first + k) * length + row % length)
            values += tl.where(at == column, added, 0.0)
    tl.store(out + row * out_row + at, values.to(out.dtype.element_ty), mask=inside)
