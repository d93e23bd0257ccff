"""Every transducer loss in float64 from logits that exist: slow, plain, and apart from the package.

A state ``(t, u)`` has consumed t frames and emitted u labels; a path leads from ``(0, 0)`` to
``(T, U)``. A site is a state with ``t < T``: there is a row of logits for it. No other state with
``t == T`` exists than the last one. The cost is the negated log of the summed weights of all paths,
inf (with gradients of 0) where there is none. Conventions, and where they were read:

- ``regular``: blank ``(t+1, u)``, label ``(t, u+1)``; the last arc is a blank. torchaudio's
  ``cpu_kernels.h``, warp-transducer, k2's ``rnnt_type="regular"``.
- ``modified``: a label takes a frame too, ``(t+1, u+1)``, and may be the last arc. k2's
  ``rnnt_loss.py``.
- ``constrained``: as modified, and a label is followed by the blank of ``(t, u+1)``. k2.
- ``one_sym_per_frame``: as modified, and the last arc is a blank. optimized_transducer, ``cpu.cc``.
- multi-blank (``big_blank_durations``): regular, and the blank with id ``blank - 1 - i`` consumes
  ``big_blank_durations[i]`` frames. Only blanks reach frame T, exactly. arXiv:2211.03541; NeMo's
  ``gpu_rnnt_kernel.py``, ESPnet's copy of it.
- TDT (``durations``): the last D logits are those of the durations. A label has any of them, a
  blank one of at least 1. Only blanks reach frame T, exactly. arXiv:2304.06795; NeMo's
  ``compute_tdt_alphas_kernel`` and ``TDTLossPytorch``. Its omega draws, once for a call, between
  this loss and the regular one of the token logits, without sigma.
- ``sigma`` is taken from every token's log-prob, the blanks' as well, not from those of durations.
- ``head="hat"``: the blank by its sigmoid, the labels by a softmax of the rest. arXiv:2003.07705.
- ``delay_penalty``: if positive, ``((T - 1) / 2 - t) * delay_penalty`` is added to a label of frame
  t. k2.
- ``fastemit_lambda``: the adjoint of each label's log-prob is multiplied by ``1 + lambda``, and so
  is the cost; other adjoints stay. arXiv:2010.11148; NeMo's ``compute_*_grad_kernel``.
- ``clamp``: if positive, the gradient of each utterance's cost by its token logits is clipped to
  ``[-clamp, clamp]``, before it is multiplied by what comes from above. torchaudio's
  ``cpu_kernels.h`` and ``autograd.cpp``, NeMo's GPU kernels.
- ``ranges``: only the sites in them exist, and only arcs between those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RNNT_TYPES = ("regular", "modified", "constrained", "one_sym_per_frame")


@dataclass(frozen=True, kw_only=True)
class LossKind:
    """Which loss; the default is the regular one, unregularised."""

    blank: int = 0
    rnnt_type: str = "regular"
    head: str = "softmax"
    durations: tuple[int, ...] = ()
    big_blank_durations: tuple[int, ...] = ()
    sigma: float = 0.0
    delay_penalty: float = 0.0
    fastemit_lambda: float = 0.0
    clamp: float = -1.0

    def __post_init__(self):
        assert self.rnnt_type in RNNT_TYPES
        assert self.head in ("softmax", "hat")
        if self.durations or self.big_blank_durations:
            assert self.rnnt_type == "regular"
        assert not (self.durations and self.big_blank_durations)
        assert not (self.big_blank_durations and self.head == "hat")
        assert all(d >= 2 for d in self.big_blank_durations)

    @property
    def is_tdt(self) -> bool:
        return bool(self.durations)


class Utterance:
    """The log-probs of one utterance, by site."""

    def __init__(self, rows: dict[tuple[int, int], Tensor], labels: list[int], T: int, kind):
        """``rows[t, u]`` are the logits of a site ``[C]``, of the sites that exist."""
        self.labels, self.T, self.U, self.kind = labels, T, len(labels), kind
        tokens = {site: row[: len(row) - len(kind.durations)] for site, row in rows.items()}
        self._log_probs = {site: log_probs_of_tokens(row, kind) for site, row in tokens.items()}
        self._duration_log_probs = (
            {site: row[-len(kind.durations) :].log_softmax(0) for site, row in rows.items()}
            if kind.is_tdt
            else {}
        )

    def has(self, t: int, u: int) -> bool:
        return (t, u) in self._log_probs

    def label(self, t: int, u: int) -> Tensor:
        """Log-prob of the next label, the penalty for a late one included."""
        early = (self.T - 1) / 2 - t if self.kind.delay_penalty > 0 else 0.0
        return self._log_probs[t, u][self.labels[u]] + early * self.kind.delay_penalty

    def blank(self, t: int, u: int) -> Tensor:
        return self._log_probs[t, u][self.kind.blank]

    def big_blank(self, t: int, u: int, i: int) -> Tensor:
        return self._log_probs[t, u][self.kind.blank - 1 - i]

    def duration(self, t: int, u: int, i: int) -> Tensor:
        return self._duration_log_probs[t, u][i]


def log_probs_of_tokens(row: Tensor, kind: LossKind) -> Tensor:
    """``[V]`` log-probs of the token logits ``[V]`` of a site."""
    if kind.head == "softmax":
        return row.log_softmax(0) - kind.sigma
    blank, is_label = kind.blank, torch.arange(len(row)) != kind.blank
    labels = row.masked_fill(~is_label, float("-inf")).log_softmax(0) + F.logsigmoid(-row[blank])
    return torch.where(is_label, labels, F.logsigmoid(row[blank])) - kind.sigma


def cost_by_recursion(x: Utterance) -> Tensor | None:
    """The cost of one utterance, state by state; None if there is no path."""
    kind = x.kind
    alpha = {(0, 0): torch.zeros((), dtype=torch.float64)}
    for t in range(x.T):
        for u in range(x.U + 1):
            if (t, u) not in alpha or not x.has(t, u):
                continue
            for frames, symbols, log_prob in _arcs(x, t, u):
                state = (t + frames, u + symbols)
                if state != (x.T, x.U) and not x.has(*state):
                    continue
                total = alpha[t, u] + log_prob
                alpha[state] = torch.logaddexp(alpha[state], total) if state in alpha else total
    if (x.T, x.U) not in alpha:
        return None
    cost = -alpha[x.T, x.U]
    return cost + kind.fastemit_lambda * cost.detach()


def _arcs(x: Utterance, t: int, u: int) -> Iterator[tuple[int, int, Tensor]]:
    """Frames, labels and log-prob of each arc that leaves a site."""
    kind, has_label = x.kind, u < x.U
    if has_label:
        label = x.label(t, u)
        label = label + kind.fastemit_lambda * (label - label.detach())
    if kind.is_tdt:
        for i, frames in enumerate(kind.durations):
            if frames > 0:
                yield frames, 0, x.blank(t, u) + x.duration(t, u, i)
            if has_label and t + frames < x.T:
                yield frames, 1, label + x.duration(t, u, i)
        return
    yield 1, 0, x.blank(t, u)
    for i, frames in enumerate(kind.big_blank_durations):
        yield frames, 0, x.big_blank(t, u, i)
    if not has_label:
        return
    if kind.rnnt_type == "regular":
        yield 0, 1, label
    elif kind.rnnt_type == "modified":
        yield 1, 1, label
    elif kind.rnnt_type == "constrained" and x.has(t, u + 1):
        yield 1, 1, label + x.blank(t, u + 1)
    elif kind.rnnt_type == "one_sym_per_frame" and t + 1 < x.T:
        yield 1, 1, label


def transducer_costs(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    kind: LossKind,
    ranges: Tensor | None = None,
    cost_of=cost_by_recursion,
) -> Tensor:
    """The cost of each utterance, ``[B]`` float64, in nats; differentiable by the logits.

    Args:
      logits: ``[B, T, U+1, C]``; with ranges ``[B, T, s_range, C]``; any floating point dtype. With
        ``kind.durations`` the last D of the C are those of the durations.
      targets: ``[B, U]``; logit_lengths, target_lengths: ``[B]``.
      ranges: ``[B, T, s_range]``, the states of a frame that exist; None: all.
      cost_of: from an ``Utterance`` to its cost, or None.
    """

    def costs_of(logits: Tensor) -> Tensor:
        costs = []
        for b, T in enumerate(logit_lengths.tolist()):
            labels = targets[b, : int(target_lengths[b])].tolist()
            rows = {
                (t, u): row
                for t, frame in enumerate(logits[b].unbind(0)[:T])
                for u, row in zip(
                    range(len(frame)) if ranges is None else ranges[b, t].tolist(), frame.unbind(0)
                )
                if u <= len(labels)
            }
            cost = cost_of(Utterance(rows, labels, T, kind))
            costs.append(float("inf") + 0 * logits[b].sum() if cost is None else cost)
        return torch.stack(costs)

    if kind.clamp > 0:
        tokens = logits.shape[-1] - len(kind.durations)
        return _ClippedCosts.apply(logits.double(), costs_of, kind.clamp, tokens)
    return costs_of(logits.double())


class _ClippedCosts(torch.autograd.Function):
    """Costs of which the gradient by the first ``tokens`` logits is clipped before all else."""

    @staticmethod
    def forward(ctx, logits, costs_of, clamp, tokens):
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            costs = costs_of(leaf)
            (grad,) = torch.autograd.grad(costs.sum(), leaf)
        grad[..., :tokens] = grad[..., :tokens].clamp(-clamp, clamp)
        ctx.save_for_backward(grad)
        return costs.detach()

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        return upstream.reshape(-1, 1, 1, 1) * grad, None, None, None
