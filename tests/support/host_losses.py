"""Hosts' full-lattice losses, under their own signatures, by the float64 oracle."""

from __future__ import annotations

import torch
from lattice_oracle import LossKind, transducer_costs
from torch import Tensor


def torchaudio_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    clamp: float = -1,
    reduction: str = "mean",
) -> Tensor:
    """``torchaudio.functional.rnnt_loss``, of logits ``[B, T, U + 1, C]``."""
    kind = LossKind(blank=blank % logits.shape[-1], clamp=clamp)
    costs = transducer_costs(logits, targets, logit_lengths, target_lengths, kind)
    return _reduced(costs, reduction, logits)


def k2_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """``k2.rnnt_loss``, of logits ``[B, T, S + 1, C]``; with a boundary, which begins at 0."""
    kind = LossKind(blank=termination_symbol, rnnt_type=rnnt_type, delay_penalty=delay_penalty)
    costs = transducer_costs(logits, symbols, boundary[:, 3], boundary[:, 2], kind)
    return _reduced(costs, reduction, logits)


def packed_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    reduction: str = "mean",
    one_sym_per_frame: bool = False,
    from_log_softmax: bool = False,
) -> Tensor:
    """``optimized_transducer.transducer_loss``, of logits ``[sum_all_TU, C]``."""
    kind = LossKind(blank=blank, rnnt_type="one_sym_per_frame" if one_sym_per_frame else "regular")
    costs, first = [], 0
    for b, (T, U) in enumerate(zip(logit_lengths.tolist(), target_lengths.tolist())):
        rows = logits[first : first + T * (U + 1)]
        first += len(rows)
        lengths = (x[b : b + 1] for x in (targets, logit_lengths, target_lengths))
        costs.append(transducer_costs(rows.view(1, T, U + 1, -1), *lengths, kind))
    assert first == len(logits)
    return _reduced(torch.cat(costs), reduction, logits)


def _reduced(costs: Tensor, reduction: str, logits: Tensor) -> Tensor:
    loss = costs if reduction == "none" else getattr(costs, reduction)()
    return loss if logits.dtype == torch.float64 else loss.float()
