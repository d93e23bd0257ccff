"""The multi-blank head: a softmax over all classes, several blanks among them.

Source: Xu et al., "Multi-blank transducers for speech recognition" (arXiv:2211.03541); ids as in
NeMo's and ESPnet's ``MultiblankRNNTLossNumba``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.losses.heads.base import Head, HeadLogProbs, Select
from panda_icefall.normalizer import RowLogits


@dataclass(frozen=True)
class MultiBlankHead(Head):
    """The plain head, with big blank number ``i`` as class ``blank - 1 - i``.

    ``others`` are the log-probs of the big blanks.

    Attributes:
      big_blanks: how many there are.
    """

    big_blanks: int

    def of_logits(self, logits: Tensor, targets: Tensor, blank: int) -> HeadLogProbs:
        log_z = torch.logsumexp(logits, dim=-1)
        found = logits.gather(-1, self._ids(targets, blank)) - log_z.unsqueeze(-1)
        return HeadLogProbs(found[..., 0], found[..., 1], log_z, found[..., 2:])

    def of_rows(
        self, logits: RowLogits, targets: Tensor, blank: int, select: Select
    ) -> HeadLogProbs:
        found = select(logits, self._ids(targets, blank))
        target, blank_logp = found.logp[:, 0], found.logp[:, 1]
        return HeadLogProbs(target, blank_logp, found.log_z, found.logp[:, 2:], found.cost_share)

    def _ids(self, targets: Tensor, blank: int) -> Tensor:
        blanks = blank - torch.arange(1 + self.big_blanks, device=targets.device)
        blanks = blanks.expand(*targets.shape, -1)
        return torch.cat((targets.unsqueeze(-1), blanks), dim=-1)
