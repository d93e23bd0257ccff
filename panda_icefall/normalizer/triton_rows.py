"""Row kernels in Triton: what ``torch_rows`` does to a tile of logits, one read of it each.

``fold`` follows the online normaliser of Milakov and Gimelshein (arXiv 1805.02867), ``gradient_``
is elementwise. Logits may be half precision; sums and exponentials are in the dtype of ``peak`` and
``log_z``. This module imports Triton, so it is imported where its functions are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Classes that one program holds in registers: 16 values a thread at 256 threads.
LARGEST_BLOCK = 4096


def fold(
    logits: Tensor, ids: Tensor, low: int, peak: Tensor, total: Tensor, chosen: Tensor
) -> None:
    """Take one class tile into the running log-sum-exp and selected logits of its rows.

    Equal to ``torch_rows.fold``, but for ``logits``, which are only read.

    Args:
      logits: ``[n, c]`` of the classes ``[low, low + c)``; float64, float32 or half, any strides.
      ids: ``[n, K]`` int64 class ids.
      low: first class of the tile.
      peak, total: ``[n]`` contiguous float32 or float64, the largest logit so far (-inf at first)
        and the sum of ``exp(logit - peak)`` (0 at first); updated.
      chosen: ``[n, K]`` of peak's dtype, written for the ids inside the tile.
    """
    n, c = logits.shape
    if n == 0:
        return
    block, num_warps = _block(c)
    with torch.cuda.device_of(logits):
        _fold_row[(n,)](
            logits, *logits.stride(), ids, *ids.stride(), chosen, *chosen.stride(), peak, total,
            low, c, ids.shape[1], triton.next_power_of_2(ids.shape[1]), block, num_warps=num_warps,
        )  # fmt: skip


def gradient_(
    logits: Tensor,
    ids: Tensor,
    low: int,
    log_z: Tensor,
    softmax_scale: Tensor,
    adjoints: Tensor,
) -> None:
    """Turn one class tile of logits into the loss's gradient with respect to them, in place.

    Equal to ``torch_rows.gradient_``: ``softmax_scale * exp(logits - log_z) +
    sum_k adjoints_k [id_k == class]``, rounded once to the dtype of the logits.

    Args:
      logits: ``[n, c]`` of the classes ``[low, low + c)``; any strides; overwritten.
      ids: ``[n, K]`` int64 class ids; duplicates in a row add up.
      low: first class of the tile.
      log_z, softmax_scale: ``[n]`` contiguous, float32 or float64.
      adjoints: ``[n, K]`` of the selected log-probs.
    """
    n, c = logits.shape
    if n == 0:
        return
    block, num_warps = _block(c)
    with torch.cuda.device_of(logits):
        _gradient_block[(n, triton.cdiv(c, block))](
            logits, *logits.stride(), ids, *ids.stride(), adjoints, *adjoints.stride(), log_z,
            softmax_scale, low, c, ids.shape[1], block, num_warps=num_warps,
        )  # fmt: skip


def _block(classes: int) -> tuple[int, int]:
    """Classes per block and warps per program."""
    block = min(triton.next_power_of_2(classes), LARGEST_BLOCK)
    return block, min(max(block // 512, 1), 8)


@triton.jit
def _fold_row(
    logits, logits_row, logits_column, ids, ids_row, ids_column, chosen, chosen_row, chosen_column,
    peak, total, low, classes, K, K_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row; ``x_row`` and ``x_column`` are strides in elements."""
    # 64-bit offsets: row * stride passes 2^31 in large tiles.
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_row
    high = tl.load(peak + row)
    summed = tl.load(total + row)
    infinity = float("inf")
    shift = tl.where(tl.abs(high) == infinity, 0.0, high)
    column = tl.arange(0, BLOCK)
    for start in range(0, classes, BLOCK):
        at = start + column
        values = tl.load(
            logits + at.to(tl.int64) * logits_column, mask=at < classes, other=-infinity
        ).to(summed.dtype)
        new_high = tl.maximum(high, tl.max(values, axis=0))
        shift = tl.where(tl.abs(new_high) == infinity, 0.0, new_high)
        # A NaN need not reach the maximum, but it does reach the sum, and so log_z.
        summed = summed * tl.exp(high - shift) + tl.sum(tl.exp(values - shift), axis=0)
        high = new_high
    tl.store(peak + row, high)
    tl.store(total + row, summed)

    k = tl.arange(0, K_BLOCK)
    at = tl.load(ids + row * ids_row + k * ids_column, mask=k < K, other=-1) - low
    inside = (k < K) & (at >= 0) & (at < classes)
    values = tl.load(logits + at * logits_column, mask=inside, other=0.0).to(summed.dtype)
    tl.store(chosen + row * chosen_row + k * chosen_column, values, mask=inside)


@triton.jit
def _gradient_block(
    logits, logits_row, logits_column, ids, ids_row, ids_column, adjoints, adjoints_row,
    adjoints_column, log_z, softmax_scale, low, classes, K, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row and block of classes: no element depends on another one."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    place = logits + row * logits_row + at * logits_column
    normalizer = tl.load(log_z + row)
    values = tl.load(place, mask=at < classes, other=0.0).to(normalizer.dtype)
    grad = tl.load(softmax_scale + row) * tl.exp(values - normalizer)
    # Compared instead of scattered: duplicates add up in the order of k, without atomics.
    for k in range(K):
        selected = tl.load(ids + row * ids_row + k * ids_column) - low
        grad += tl.where(
            at == selected, tl.load(adjoints + row * adjoints_row + k * adjoints_column), 0.0
        )
    tl.store(place, grad.to(logits.dtype.element_ty), mask=at < classes)
