"""HAT: the blank as a Bernoulli variable beside a softmax over the other classes.

Per site, with the logits `z` and the blank as class 0,

    blank  = logsigmoid(z_0)
    target = logsigmoid(-z_0) + z_target - logsumexp(z_1 .. z_{C-1})

`logsigmoid(-z_0)` never passes through a normaliser over all classes, where a dominant blank would
leave nothing of the others but rounding. Source: Variani et al., "Hybrid autoregressive
transducer" (arXiv:2003.07705); k2's `get_hat_logprobs_pruned`.
"""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.normalizer import RowProgram

__all__ = ["check_hat", "dense_hat_log_probs", "selected_hat_log_probs"]

LogProbs = Callable[..., tuple[Tensor, Tensor]]


def check_hat(termination_symbol: int, num_classes: int) -> None:
    """Refuse what the HAT loss, as k2 has it, is not defined for.

    Raises:
      ValueError: the termination symbol is not class 0, or there is no other class.
    """
    if termination_symbol != 0:
        raise ValueError(
            f"termination_symbol: got {termination_symbol}, expected 0 with use_hat_loss=True; "
            "make the blank the first class"
        )
    if num_classes < 2:
        raise ValueError(
            f"use_hat_loss: got True for C={num_classes}, expected C >= 2, the blank and a symbol"
        )


def dense_hat_log_probs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The HAT log-probs of logits that exist.

    Args:
      logits: `[..., C]` with the blank as class 0.
      targets: int64 `[...]` in `[0, C)`; at 0 (padding) k2's value, `blank - log_z`, is given.

    Returns:
      `(target, blank, log_z)`, each `[...]` in nats; `log_z` is that of the classes above 0.
    """
    blank_logit = logits[..., 0]
    log_z = logits[..., 1:].logsumexp(dim=-1)
    label_logp = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_z
    return _join(blank_logit, label_logp, log_z, targets == 0)


def selected_hat_log_probs(
    log_probs: LogProbs,
    rows: Tensor | RowProgram,
    weight: Tensor | None,
    bias: Tensor | None,
    targets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The HAT log-probs of a joiner's rows, without the logits `[N, C]`.

    Equal to `dense_hat_log_probs(F.linear(rows, weight, bias), targets)`.

    Args:
      log_probs: `selected_log_probs` with everything given but the rows, the weight, the bias, the
        ids and their mask; called twice, so that its counters see every site twice.
      rows: `[N, H]`, or the program that computes them.
      weight: `[C, H]`, C >= 2, the blank's row first; None: the rows are the logits.
      bias: `[C]` or None.
      targets: int64 `[N]` in `[0, C)`.

    Returns:
      `(target, blank, log_z)`, each `[N]`, as of `dense_hat_log_probs`.
    """
    odds: tuple[Tensor | RowProgram, Tensor | None, Tensor | None]
    labels: tuple[Tensor | RowProgram, Tensor | None, Tensor | None]
    if weight is None:
        program = RowProgram.of(rows)
        odds = (program.then(_against_zero, width=2), None, None)
        labels = (program.then(_without_first, width=program.width - 1), None, None)
    else:
        sizes = [1, weight.shape[0] - 1]
        blank_weight, label_weight = weight.split(sizes)
        blank_bias, label_bias = (None, None) if bias is None else bias.split(sizes)
        blank_weight = torch.cat((blank_weight, torch.zeros_like(blank_weight)))
        if blank_bias is not None:
            blank_bias = torch.cat((blank_bias, torch.zeros_like(blank_bias)))
        odds = (rows, blank_weight, blank_bias)
        labels = (rows, label_weight, label_bias)
    # The blank's logit as its log odds against a logit of 0. Their adjoints sum to 0 over the two
    # classes, so that no probability enters the gradient, which would be 1 only up to the rounding
    # of the logit.
    ids = torch.zeros_like(targets)
    odds_logp, _ = log_probs(*odds, torch.stack((ids, ids + 1), dim=1))
    is_blank = targets == 0
    label_logp, log_z = log_probs(
        *labels, (targets - 1).unsqueeze(1), selected_mask=~is_blank.unsqueeze(1)
    )
    blank_logit = odds_logp[:, 0] - odds_logp[:, 1]
    return _join(blank_logit, label_logp.squeeze(1), log_z, is_blank)


def _against_zero(rows: Tensor) -> Tensor:
    return F.pad(rows[..., :1], (0, 1))


def _without_first(rows: Tensor) -> Tensor:
    return rows[..., 1:]


def _join(
    blank_logit: Tensor, label_logp: Tensor, log_z: Tensor, is_blank: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    blank = F.logsigmoid(blank_logit)
    target = torch.where(is_blank, blank - log_z, F.logsigmoid(-blank_logit) + label_logp)
    return target, blank, log_z
