"""The plain head: a softmax over all classes, the blank among them."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.losses.heads.base import Head, HeadLogProbs, Select
from panda_icefall.normalizer import RowLogits


class PlainHead(Head):
    """``z_target - log_z`` and ``z_blank - log_z``, with ``log_z = logsumexp(z)``."""

    def of_logits(self, logits: Tensor, targets: Tensor, blank: int) -> HeadLogProbs:
        log_z = torch.logsumexp(logits, dim=-1)
        target = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_z
        return HeadLogProbs(target, logits[..., blank] - log_z, log_z)

    def of_rows(
        self, logits: RowLogits, targets: Tensor, blank: int, select: Select
    ) -> HeadLogProbs:
        ids = torch.stack([targets, torch.full_like(targets, blank)], dim=1)
        found = select(logits, ids)
        target, blank_logp = found.logp.unbind(dim=1)
        return HeadLogProbs(target, blank_logp, found.log_z, cost_share=found.cost_share)
