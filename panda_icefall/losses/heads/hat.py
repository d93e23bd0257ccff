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
from panda_icefall.normalizer import RowLogits


class HatHead(Head):
    """The blank is class 0. At targets of 0 (padding) k2's value, ``blank - log_z``, is given.

    ``log_z`` is that of the classes above 0.
    """

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
        """Calls ``select`` twice, so that its counters see every site twice."""
        odds, labels = _split(logits)
        # The blank's logit as its log odds against a logit of 0. Their adjoints sum to 0 over the
        # two classes, so that no probability enters the gradient, which would be 1 only up to the
        # rounding of the logit.
        ids = torch.zeros_like(targets)
        odds_logp, _ = select(odds, torch.stack((ids, ids + 1), dim=1))
        is_blank = targets == 0
        label_logp, log_z = select(labels, (targets - 1).unsqueeze(1), ~is_blank.unsqueeze(1))
        blank_logit = odds_logp[:, 0] - odds_logp[:, 1]
        return _joined(blank_logit, label_logp.squeeze(1), log_z, is_blank)


def _split(logits: RowLogits) -> tuple[RowLogits, RowLogits]:
    """The blank's logit beside a logit of 0, and the logits of the other classes."""
    rows, weight, bias, head_dtype = logits.rows, logits.weight, logits.bias, logits.head_dtype
    if weight is None:
        return (
            RowLogits(rows.then(_against_zero, width=2), head_dtype=head_dtype),
            RowLogits(rows.then(_without_first, width=rows.width - 1), head_dtype=head_dtype),
        )
    sizes = [1, weight.shape[0] - 1]
    blank_weight, label_weight = weight.split(sizes)
    blank_bias, label_bias = (None, None) if bias is None else bias.split(sizes)
    blank_weight = torch.cat((blank_weight, torch.zeros_like(blank_weight)))
    if blank_bias is not None:
        blank_bias = torch.cat((blank_bias, torch.zeros_like(blank_bias)))
    return (
        RowLogits(rows, blank_weight, blank_bias, head_dtype),
        RowLogits(rows, label_weight, label_bias, head_dtype),
    )


def _against_zero(rows: Tensor) -> Tensor:
    return F.pad(rows[..., :1], (0, 1))


def _without_first(rows: Tensor) -> Tensor:
    return rows[..., 1:]


def _joined(
    blank_logit: Tensor, label_logp: Tensor, log_z: Tensor, is_blank: Tensor
) -> HeadLogProbs:
    blank = F.logsigmoid(blank_logit)
    target = torch.where(is_blank, blank - log_z, F.logsigmoid(-blank_logit) + label_logp)
    return HeadLogProbs(target, blank, log_z)
