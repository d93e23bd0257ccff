"""The token-and-duration head: a softmax over the tokens beside one over the durations.

Source: Xu et al., "Efficient sequence transduction by jointly predicting tokens and durations"
(arXiv:2304.06795); the layout of the logits is that of NeMo's ``TDTLossNumba``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.losses.heads.base import Head, HeadLogProbs, Select
from panda_icefall.losses.heads.plain import PlainHead
from panda_icefall.normalizer import ClassRanges, RowLogits


@dataclass(frozen=True)
class TdtHead(Head):
    """Of the classes the last ones are durations, the others tokens, the blank among them.

    ``others`` are the log-probs of the durations, ``log_z`` is the normaliser of the tokens. A
    clamp leaves the gradient of the durations' logits alone, as in NeMo.

    Attributes:
      durations: how many there are.
      reads_durations: False: ``others`` is None, and the durations' logits have no gradient.
    """

    durations: int
    reads_durations: bool = True

    def token_classes(self, classes: int) -> int:
        return classes - self.durations

    def of_logits(self, logits: Tensor, targets: Tensor, blank: int) -> HeadLogProbs:
        tokens, durations = logits.split([logits.shape[-1] - self.durations, self.durations], -1)
        found = PlainHead().of_logits(tokens, targets, blank)
        if not self.reads_durations:
            return found
        return found._replace(others=durations.log_softmax(-1))

    def of_rows(
        self, logits: RowLogits, targets: Tensor, blank: int, select: Select
    ) -> HeadLogProbs:
        tokens, classes = self.token_classes(logits.classes), logits.classes
        durations = range(tokens, classes if self.reads_durations else tokens)
        ids = torch.stack([targets, torch.full_like(targets, blank)], dim=1)
        found = select(logits, ids, read=ClassRanges(range(tokens), durations))
        target, blank_logp = found.logp.unbind(dim=1)
        others = found.logits.log_softmax(-1) if self.reads_durations else None
        return HeadLogProbs(target, blank_logp, found.log_z, others, found.cost_share)
