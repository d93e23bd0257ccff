"""CTC of a linear head: only the log-probs of each utterance's own labels and the blank exist.

The lattice of an utterance reads its labels and the blank, nothing else of the C classes. So each
utterance gets an alphabet of its own, blank first and then its distinct labels, and torch's CTC
runs over that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.first_order import first_order_only
from panda_icefall.losses.spec import check_mean_of
from panda_icefall.normalizer import (
    RowLogits,
    TileCounters,
    TileOptions,
)
from panda_icefall.normalizer.op import select

__all__ = ["REDUCTIONS", "CtcTargets", "selected_ctc_loss"]

REDUCTIONS = ("none", "mean", "sum")


@dataclass(frozen=True, eq=False)
class CtcTargets:
    """What the utterances of a batch are to say, in numbers on the CPU.

    Attributes:
      labels: int64 ``[B, S + 1]``, S being the most labels of an utterance; the blank beyond its
        own ones.
      frames: int64 ``[B]``, frames of each utterance.
      counts: int64 ``[B]``, labels of each utterance.
      blank: class of the blank.
    """

    labels: Tensor
    frames: Tensor
    counts: Tensor
    blank: int

    @classmethod
    def of(
        cls,
        targets: Tensor,
        input_lengths: Any,
        target_lengths: Any,
        *,
        blank: int,
        batch: int,
        max_frames: int,
        classes: int,
    ) -> CtcTargets:
        """The arguments of ``torch.nn.functional.ctc_loss``, checked.

        Args:
          targets: integers on any device, ``[B, S]``, padded, or ``[sum of target_lengths]``, one
            utterance after another.
          input_lengths, target_lengths: ``[B]`` integers, in a tensor on any device or a sequence.
          blank: class of the blank.
          batch, max_frames, classes: B, T and C.

        Raises:
          ValueError: a shape, a length or a label is out of range; the message names the utterance.
          TypeError: targets or lengths are no integers.
        """
        if not 0 <= blank < classes:
            raise ValueError(f"blank: got {blank}, expected 0 <= blank < {classes} (C)")
        frames = _lengths("input_lengths", input_lengths, batch, max_frames, "frames, T")
        is_padded = targets.dim() == 2
        if targets.dim() not in (1, 2) or (is_padded and targets.shape[0] != batch):
            raise ValueError(
                f"targets: got shape {tuple(targets.shape)}, expected [{batch}, S], or "
                "[sum of target_lengths]"
            )
        given = _integers("targets", targets)
        counts = _lengths("target_lengths", target_lengths, batch, given.shape[-1], "labels")
        if not is_padded and int(counts.sum()) != given.shape[0]:
            raise ValueError(
                f"target_lengths: got a sum of {int(counts.sum())}, expected the "
                f"{given.shape[0]} labels of targets"
            )
        widest = max(counts.tolist(), default=0)
        inside = torch.arange(widest + 1) < counts[:, None]
        labels = torch.full(inside.shape, blank, dtype=torch.int64)
        labels[inside] = given[:, :widest][inside[:, :widest]] if is_padded else given
        is_wrong = ((labels < 0) | (labels >= classes)).nonzero()
        if len(is_wrong):
            utterance, at = is_wrong[0].tolist()
            raise ValueError(
                f"targets: got label {labels[utterance, at]} in utterance {utterance}, expected "
                f"0 <= label < {classes} (C)"
            )
        return cls(labels, frames, counts, blank)


@opaque
def selected_ctc_loss(
    logits: RowLogits,
    targets: CtcTargets,
    options: TileOptions,
    *,
    reduction: str = "mean",
    zero_infinity: bool = False,
    counters: TileCounters | None = None,
) -> Tensor:
    """CTC of a linear head.

    Equal to ``F.ctc_loss(logits.view(B, T, C).log_softmax(2).transpose(0, 1), ...)`` without
    materialising the logits, their log-softmax or its gradient, ``[B, T, C]`` each. Frames beyond
    an utterance's length are not evaluated.

    Args:
      logits: ``[B * T, C]`` in (b, t) order, as what computes them.
      targets: of B utterances.
      options: of the tiles.
      reduction: "none", "mean" (of the losses by their counts of labels, one or more) or "sum".
      zero_infinity: whether an utterance of fewer frames than its labels need has loss and gradient
        0; else its loss is infinite.
      counters: totals to add to.

    Returns:
      Negated log-probs in nats, ``[B]`` for "none", else a scalar; float64 for float64 rows,
      float32 otherwise.

    Raises:
      ValueError: the reduction is unknown, or the mean of no utterances; the rows are no multiple
        of B, or none of some utterances.

    Source:
      Graves et al., "Connectionist temporal classification", ICML 2006.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, expected one of {REDUCTIONS}")
    rows, (B, _) = logits.rows.sites, targets.labels.shape
    if reduction == "mean":
        check_mean_of(B)
    if B > 0 and rows == 0:
        raise ValueError(
            f"logits: got no frames at all (T=0) for {B} utterances, expected 1 or more; skip such "
            "a batch"
        )
    if rows % max(B, 1) or (B == 0 and rows > 0):
        raise ValueError(f"logits: got {rows} rows for {B} utterances, expected B * T of them")
    if B == 0:
        ids = targets.labels.to(logits.rows.tables[0].values.device)  # [0, 1]
        none = select(logits, ids, live=None, options=options, counters=counters).logp
        return none.flatten() if reduction == "none" else none.sum()
    T, device = rows // B, logits.rows.tables[0].values.device
    alphabet = _OwnAlphabets.of(targets)
    is_live = torch.arange(T) < targets.frames[:, None]
    live = is_live.view(-1).nonzero().view(-1).to(device)  # [n]
    ids = alphabet.classes.to(device)  # [B, K]
    found = select(
        replace(logits, rows=logits.rows.at(live)),
        ids.index_select(0, live.div(T, rounding_mode="floor")),
        live=None,
        options=options,
        counters=counters,
    )
    log_probs = found.logp.new_zeros(rows, ids.shape[1]).index_copy(0, live, found.logp)
    losses = _CompactCtc.apply(
        log_probs.view(B, T, -1).transpose(0, 1),
        alphabet.labels.to(device),
        alphabet.is_used.to(device),
        targets.frames,
        targets.counts,
        zero_infinity,
        options.workspace_on(device),
    )
    if reduction == "none":
        return losses
    if reduction == "mean":
        losses = losses / targets.counts.clamp(min=1).to(losses)
        return losses.mean()
    return losses.sum()


@dataclass(frozen=True, eq=False)
class _OwnAlphabets:
    """The classes that each utterance reads, numbered from its blank on.

    Attributes:
      classes: int64 ``[B, K]``, blank first, then the distinct labels in ascending order, then
        the blank again where an utterance has fewer of them than the one with the most.
      labels: int64 ``[B, S + 1]``, the labels as columns of ``classes``.
      is_used: bool ``[B, K]``, False where the blank stands again.
    """

    classes: Tensor
    labels: Tensor
    is_used: Tensor

    @classmethod
    def of(cls, targets: CtcTargets) -> _OwnAlphabets:
        blank = targets.blank
        # The last column is padding in every utterance: there is a blank to sort first.
        keys = targets.labels.masked_fill(targets.labels == blank, -1)
        ordered, order = keys.sort(dim=1)
        columns = torch.zeros_like(ordered)
        columns[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(dim=1)
        K = int(columns.max()) + 1
        classes = torch.full((len(keys), K), blank)
        classes.scatter_(1, columns, ordered.masked_fill(ordered == -1, blank))
        labels = torch.empty_like(columns).scatter_(1, order, columns)
        return cls(classes, labels, torch.arange(K) <= columns[:, -1:])


class _CompactCtc(torch.autograd.Function):
    """torch's CTC of log-probs ``[T, B, K]`` that do not sum to 1, with their own gradient.

    torch's gives ``exp(log_probs) - occupations``: what comes out behind a log-softmax over all
    classes, which the classes that are not here are a part of. The derivative with respect to the
    log-probs themselves is ``-occupations``.

    The lattice is in float64: over few classes it costs little, and occupations in float32 would be
    off by eps times the loss in nats.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        log_probs: Tensor,
        labels: Tensor,
        is_used: Tensor,
        frames: Tensor,
        counts: Tensor,
        zero_infinity: bool,
        workspace_bytes: int,
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        losses = log_probs.new_empty(log_probs.shape[1])
        occupations = torch.empty_like(log_probs) if needs_gradient else None
        # What float64 takes beside its result: alpha, beta, log-probs, their exp and gradient.
        T, B, K = log_probs.shape
        utterance_bytes = 8 * T * (2 * (2 * labels.shape[1] + 1) + 3 * K)
        step = max(1, workspace_bytes // utterance_bytes)
        for low in range(0, B, step):
            some = slice(low, low + step)
            with torch.set_grad_enabled(needs_gradient):
                leaf = log_probs[:, some].detach().double().requires_grad_(needs_gradient)
                # Labels of 64 bits keep it from cuDNN, which would normalise over the K classes.
                # torch 1.13 reads beyond its lattice where there is no frame.
                found = torch.ctc_loss(
                    leaf, labels[some], frames[some].clamp(min=1), counts[some], reduction=0
                )
                total = found.sum()
            losses[some] = found.detach()
            if occupations is not None:
                (grad,) = torch.autograd.grad(total, leaf)
                occupations[:, some] = leaf.detach().exp().sub_(grad)
        of_no_frame = torch.where(counts == 0, 0.0, torch.inf).to(losses)
        losses = torch.where((frames == 0).to(losses.device), of_no_frame, losses)
        is_zeroed = (losses == torch.inf) & zero_infinity
        if occupations is not None:
            # Rounding leaves something of the classes that no label is of.
            ctx.save_for_backward(occupations.masked_fill_(~is_used | is_zeroed[:, None], 0.0))
        return losses.masked_fill_(is_zeroed, 0.0)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (occupations,) = ctx.saved_tensors
        return (-grad[:, None] * occupations, *(None,) * 6)


def _lengths(name: str, value: Any, batch: int, most: int, of: str) -> Tensor:
    """``[B]`` integers in ``[0, most]``, on the CPU."""
    given = torch.as_tensor(value)
    # torch takes a list of nothing for floats.
    lengths = _integers(name, given if given.numel() else given.long())
    if lengths.shape != (batch,):
        raise ValueError(f"{name}: got shape {tuple(lengths.shape)}, expected [{batch}] (B)")
    is_wrong = ((lengths < 0) | (lengths > most)).nonzero()
    if len(is_wrong):
        utterance = int(is_wrong[0])
        raise ValueError(
            f"{name}: got {lengths[utterance]} for utterance {utterance}, expected 0 to {most} "
            f"({of})"
        )
    return lengths


def _integers(name: str, value: Tensor) -> Tensor:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: got {value.dtype}, expected integers")
    return value.detach().cpu().to(torch.int64)
