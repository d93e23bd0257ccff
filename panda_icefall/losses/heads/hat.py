"""HAT: the blank as a Bernoulli variable beside a softmax over the other classes.

Per site, with the logits ``z`` and the blank as class 0,

    blank  = logsigmoid(z_0)
    target = logsigmoid(-z_0) + z_target - logsumexp(z_1 .. z_{C-1})

``logsigmoid(-z_0)`` never passes through a normaliser over all classes, where a dominant blank
would leave nothing of the others but rounding. Source: Variani et al., "Hybrid autoregressive
transducer" (arXiv:2003.07705); k2's ``get_hat_logprobs_pruned``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.losses.heads.base import Head, HeadLogProbs, Select
from panda_icefall.normalizer import ClassRanges, RowLogits


class HatHead(Head):
    """The blank is class 0. At targets of 0 (padding) k2's value, ``blank - log_z``, is given.

    ``log_z`` is that of the classes above 0.
    """

    # Its logits are in two parts.
    takes_clamp = False

    def check(self, blank: int, classes: int) -> None:
        if blank != 0:
            raise ValueError(
                f"termination_symbol: got {blank}, expected 0 with use_hat_loss=True; "
                "make the blank the first class"
            )
        if classes < 2:
            raise ValueError(
                f"use_hat_loss: got True for C={classes}, expected C >= 2, the blank and a symbol"
            )

    def of_logits(self, logits: Tensor, targets: Tensor, blank: int) -> HeadLogProbs:
        log_z = logits[..., 1:].logsumexp(dim=-1)
        label_logp = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_z
        return _joined(logits[..., 0], label_logp, log_z, targets == 0)

    def of_rows(
        self, logits: RowLogits, targets: Tensor, blank: int, select: Select
    ) -> HeadLogProbs:
        # The blank's own logit: no probability enters its gradient, which would be 1 only up to
        # the rounding of the logit.
        read = ClassRanges(normalized=range(1, logits.classes), plain=range(1))
        is_blank = targets == 0
        found = select(logits, targets.unsqueeze(1), ~is_blank.unsqueeze(1), read=read)
        return _joined(found.logits.squeeze(1), found.logp.squeeze(1), found.log_z, is_blank)


def _joined(
    blank_logit: Tensor, label_logp: Tensor, log_z: Tensor, is_blank: Tensor
) -> HeadLogProbs:
    blank = F.logsigmoid(blank_logit)
    target = torch.where(is_blank, blank - log_z, F.logsigmoid(-blank_logit) + label_logp)
    return HeadLogProbs(target, blank, log_z)
