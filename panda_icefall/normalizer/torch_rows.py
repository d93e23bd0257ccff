"""Row kernels in plain torch: what happens to a tile of logits between its two GEMMs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from panda_icefall.normalizer.plan import ClassTile

# The GEMM does: it reads what it adds its products to anyway.
ADDS_BIAS = False
# Half of the L2 cache of a core, where two cores work on a strip.
STRIP_BYTES = 2**20


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

    Args:
      tile: ``[n, width]``, the logits of the tile's classes in its first columns, whatever in the
        others; overwritten.
      bias: ``[c]`` still to be added, or None.
      at: the tile's classes; those from 0 on come first, whatever peak, total and chosen hold.
      ids: ``[n, K]`` int64 class ids.
      peak: ``[n]``, the largest logit so far; updated.
      total: ``[n]``, the sum of ``exp(logit - peak)`` so far; updated. An infinite peak is not
        subtracted, as in ``torch.logsumexp``, so that rows of only -inf (or with a +inf) give the
        infinities of the dense expression and no NaN.
      chosen: ``[n, K]`` logits of the ids; updated for those inside the tile.
    """
    logits = tile[:, : at.width]
    if bias is not None:
        logits.add_(bias)
    is_first = at.low == 0
    if is_first:
        column = ids if at.is_whole else ids.clamp(max=at.width - 1)
        torch.gather(logits, 1, column, out=chosen)
    else:
        inside, column = _in_tile(ids, at)
        chosen.copy_(torch.where(inside, logits.gather(1, column), chosen))
    for rows in _strips(tile):
        part, high, summed = logits[rows], peak[rows], total[rows]
        if is_first:
            torch.amax(part, dim=1, out=high)
            torch.sum(part.sub_(finite_or_zero(high)[:, None]).exp_(), dim=1, out=summed)
            continue
        new_high = torch.maximum(high, part.amax(dim=1))
        shift = finite_or_zero(new_high)
        summed.mul_(high.sub_(shift).exp_())
        summed.add_(part.sub_(shift[:, None]).exp_().sum(dim=1))
        high.copy_(new_high)


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

    It is ``softmax_scale * exp(logits - log_z) + sum_k adjoints_k [id_k == class]``.

    Args:
      tile, bias, at, ids: as of ``fold``; duplicates in a row of ids add up.
      log_z, softmax_scale: ``[n]``.
      adjoints: ``[n, K]`` of the selected log-probs.
      limits: ``[n]``, bounds of the absolute gradient, or None.
      out: as the tile, which it may be; the gradient is written to its first columns, rounded once
        to its dtype.
      bias_grad: ``[c]`` that the sum over the rows is added to, or None.
    """
    grad = tile[:, : at.width]
    if bias is not None:
        grad.add_(bias)
    for rows in _strips(tile):
        grad[rows].sub_(log_z[rows, None]).exp_().mul_(softmax_scale[rows, None])
    column = ids
    if not at.is_whole:
        inside, column = _in_tile(ids, at)
        adjoints = torch.where(inside, adjoints, torch.zeros_like(adjoints))
    row = torch.arange(ids.shape[0], device=ids.device)[:, None]
    # Not scatter_add_, whose sums on CUDA come in any order.
    grad.index_put_((row, column), adjoints, accumulate=True)
    if limits is not None:
        torch.minimum(grad, limits[:, None], out=grad)
        torch.maximum(grad, -limits[:, None], out=grad)
    if bias_grad is not None:
        bias_grad += grad.sum(dim=0)
    if out is not tile:
        out[:, : at.width].copy_(grad)


def finite_or_zero(peak: Tensor) -> Tensor:
    """What is subtracted from logits before ``exp``: the peak, or 0 where it is infinite."""
    return torch.nan_to_num(peak, nan=math.nan, posinf=0.0, neginf=0.0)


def _strips(tile: Tensor) -> list[slice]:
    """Rows that a CPU's cache keeps from one pass over them to the next; elsewhere all rows."""
    n, row_bytes = tile.shape[0], tile.stride(0) * tile.element_size()
    step = max(1, STRIP_BYTES // row_bytes) if tile.device.type == "cpu" else max(1, n)
    return [slice(low, min(low + step, n)) for low in range(0, n, step)]


def _in_tile(ids: Tensor, at: ClassTile) -> tuple[Tensor, Tensor]:
    """Which selected ids ``[n, K]`` lie in the tile, and their columns (the nearest where not)."""
    offset = ids - at.low
    column = offset.clamp(0, at.width - 1)
    return offset == column, column
