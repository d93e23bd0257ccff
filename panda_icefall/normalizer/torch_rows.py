"""Row kernels in plain torch: what happens to a tile of logits between its two GEMMs."""

from __future__ import annotations

import torch
from torch import Tensor


def fold(
    logits: Tensor, ids: Tensor, low: int, peak: Tensor, total: Tensor, chosen: Tensor
) -> None:
    """Take one class tile into the running log-sum-exp and selected logits of its rows.

    Args:
      logits: ``[n, c]`` of the classes ``[low, low + c)``, contiguous; overwritten.
      ids: ``[n, K]`` int64 class ids.
      low: first class of the tile.
      peak: ``[n]``, the largest logit so far, -inf at first; updated.
      total: ``[n]``, the sum of ``exp(logit - peak)`` so far, 0 at first; updated. An infinite
        peak is not subtracted, as in ``torch.logsumexp``, so that rows of only -inf (or with a
        +inf) give the infinities of the dense expression and no NaN.
      chosen: ``[n, K]`` logits of the ids, written for those inside the tile.
    """
    inside, column = _in_tile(ids, low, low + logits.shape[1])
    chosen.copy_(torch.where(inside, logits.gather(1, column), chosen))
    new_peak = torch.maximum(peak, logits.amax(dim=1))
    shift = finite_or_zero(new_peak)
    total.mul_((peak - shift).exp_())
    total.add_(logits.sub_(shift[:, None]).exp_().sum(dim=1))
    peak.copy_(new_peak)


def gradient_(
    logits: Tensor,
    ids: Tensor,
    low: int,
    log_z: Tensor,
    softmax_scale: Tensor,
    adjoints: Tensor,
) -> None:
    """Turn one class tile of logits into the loss's gradient with respect to them, in place.

    The result is ``softmax_scale * exp(logits - log_z) + sum_k adjoints_k [id_k == class]``.

    Args:
      logits: ``[n, c]`` of the classes ``[low, low + c)``, contiguous; overwritten.
      ids: ``[n, K]`` int64 class ids; duplicates in a row add up.
      low: first class of the tile.
      log_z, softmax_scale: ``[n]``.
      adjoints: ``[n, K]`` of the selected log-probs.
    """
    logits.sub_(log_z[:, None]).exp_().mul_(softmax_scale[:, None])
    inside, column = _in_tile(ids, low, low + logits.shape[1])
    row = torch.arange(ids.shape[0], device=ids.device)[:, None].expand_as(ids)
    adjoints = torch.where(inside, adjoints, torch.zeros_like(adjoints))
    # Not scatter_add_, whose sums on CUDA come in any order.
    logits.index_put_((row, column), adjoints, accumulate=True)


def finite_or_zero(peak: Tensor) -> Tensor:
    """What is subtracted from logits before ``exp``: the peak, or 0 where it is infinite."""
    return torch.where(torch.isinf(peak), torch.zeros_like(peak), peak)


def _in_tile(ids: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Which selected ids ``[n, K]`` lie in ``[low, high)``, and their columns (0 where not)."""
    inside = (ids >= low) & (ids < high)
    return inside, torch.where(inside, ids - low, torch.zeros_like(ids))
