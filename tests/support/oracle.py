"""The dense truth in float64: simple, slow, ``[N, C]`` kept."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_selected_log_probs(
    rows: Tensor, weight: Tensor, bias: Tensor | None, selected_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """What ``selected_log_probs`` equals, computed on float64 copies of the given values.

    Args:
      rows: ``[N, H]``; weight: ``[C, H]``; bias: ``[C]`` or None; any floating point dtype.
      selected_ids: ``[N, K]`` int64.

    Returns:
      ``[N, K]`` log-probs and ``[N]`` log_z in nats, float64, differentiable.
    """
    logits = rows.double() @ weight.double().t()
    if bias is not None:
        logits = logits + bias.double()
    log_z = torch.logsumexp(logits, dim=1)
    return logits.gather(1, selected_ids) - log_z[:, None], log_z
