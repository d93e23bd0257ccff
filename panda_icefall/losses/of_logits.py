"""Full-lattice losses of logits that exist: torchaudio's padded, optimized_transducer's packed.

Beside the logits only their gradient is of their size. A joiner in place of the logits needs
neither: ``panda_icefall.transducer_loss``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.losses.heads import HeadLogProbs, PlainHead
from panda_icefall.losses.lengths import sites_of_utterances
from panda_icefall.losses.logit_checks import check_floats
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.selected import loss_of_log_probs, selected_transducer_loss
from panda_icefall.losses.sites import FullSites
from panda_icefall.normalizer import RowLogits, RowProgram, RowTable

__all__ = ["rnnt_loss", "sites_of_lengths", "transducer_loss"]


@opaque
def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = -1,
    clamp: float = -1,
    reduction: str = "mean",
    fused_log_softmax: bool = True,
) -> Tensor:
    """The loss of ``torchaudio.functional.rnnt_loss``; also in float64 and bfloat16.

    Args:
      logits: floats ``[B, T, S + 1, C]``; log-probs where ``fused_log_softmax`` is False.
      targets: integers ``[B, S]``; what lies beyond an utterance's length is not read.
      logit_lengths, target_lengths: integers ``[B]``.
      blank: its class; a negative one counts from the last.
      clamp: as in ``panda_icefall.transducer_loss``.
      reduction: "none", "mean" (over utterances, one or more) or "sum".

    Returns:
      The loss in nats, ``[B]`` for "none", else a scalar; of half logits float32.

    Raises:
      ValueError: a shape or a value does not fit; of a value the utterance is named.
      TypeError: a dtype does not fit.
    """
    check_floats("logits", logits, "[B, T, S + 1, C]", takes_half=True)
    B, T, states, C = logits.shape
    if tuple(targets.shape) != (B, states - 1):
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, expected [B, S] = [{B}, {states - 1}] for "
            f"logits of shape {tuple(logits.shape)}"
        )
    sites = sites_of_lengths(
        targets.to(logits.device), logit_lengths, target_lengths,
        T=T, classes=C, blank=blank, reduction=reduction,
    )  # fmt: skip
    table = RowTable(logits.reshape(-1, C), sites.position)
    return _loss(table, sites, clamp, is_normalised=not fused_log_softmax)


@opaque
def transducer_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    reduction: str = "mean",
    one_sym_per_frame: bool = False,
    from_log_softmax: bool = False,
) -> Tensor:
    """The loss of ``optimized_transducer.transducer_loss``, which leaves the logits as they are.

    Args:
      logits: floats ``[sum_all_TU, C]``: the sites of one utterance after those of another, frame
        by frame, ``T_b (U_b + 1)`` each; log-probs where ``from_log_softmax``.
      targets: integers ``[B, U]``; what lies beyond an utterance's length is not read.
      logit_lengths, target_lengths: integers ``[B]``.
      blank: its class.
      reduction: "mean" (over utterances, one or more) or "sum"; "none" besides.
      one_sym_per_frame: a symbol takes a frame, and the last frame emits a blank.

    Returns:
      The loss in nats; of half logits float32.

    Raises:
      ValueError: a shape or a value does not fit; of a value the utterance is named.
      TypeError: a dtype does not fit.
    """
    check_floats("logits", logits, "[sum_all_TU, C]", takes_half=True)
    T = int(logit_lengths.max()) if logit_lengths.numel() else 0
    sites = sites_of_lengths(
        targets.to(logits.device), logit_lengths, target_lengths,
        T=T, classes=logits.shape[1], blank=blank, reduction=reduction,
        one_sym_per_frame=one_sym_per_frame,
    )  # fmt: skip
    if logits.shape[0] != sites.position.shape[0]:
        raise ValueError(
            f"logits: got {logits.shape[0]} rows, expected sum_all_TU = {sites.position.shape[0]}, "
            "T_b (U_b + 1) of each utterance"
        )
    return _loss(RowTable(logits), sites, -1.0, is_normalised=from_log_softmax)


def sites_of_lengths(
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    *,
    T: int,
    classes: int,
    blank: int,
    reduction: str,
    one_sym_per_frame: bool = False,
) -> FullSites:
    """The sites of torchaudio's lattice, or of optimized_transducer's, from its arguments.

    Raises:
      ValueError, TypeError: as ``sites_of_utterances``.
    """
    if classes < 1:
        raise ValueError("logits: got no classes (C=0), expected 1 or more")
    at = classes + blank if blank < 0 else blank
    if not 0 <= at < classes:
        raise ValueError(f"blank: got {blank}, expected a class of {classes}, or -1, the last one")
    return sites_of_utterances(
        targets, logit_lengths, target_lengths,
        T=T, blank=at, classes=classes, forbidden=range(0), is_final_blank=one_sym_per_frame,
        rnnt_type="modified" if one_sym_per_frame else "regular", reduction=reduction,
    )  # fmt: skip


def _loss(table: RowTable, sites: FullSites, clamp: float, *, is_normalised: bool) -> Tensor:
    bound = clamp if clamp > 0 else None
    if not is_normalised:
        logits = RowLogits(RowProgram((table,)))
        return selected_transducer_loss(logits, sites, PlainHead(), LossOptions(), clamp=bound)
    if bound is not None:
        raise ValueError(f"clamp: got {clamp} for log-probs, expected 0 or less; give logits")
    targets, rows = sites.next_symbols(), table.values
    row = torch.arange(rows.shape[0], device=rows.device) if table.index is None else table.index
    target, blank = rows[row, targets], rows[row, sites.spec.termination_symbol]
    is_double = rows.dtype == torch.float64
    target, blank = (x if is_double else x.float() for x in (target, blank))
    return loss_of_log_probs(HeadLogProbs(target, blank, torch.zeros_like(blank)), sites)
