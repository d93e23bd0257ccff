"""The recursion over a lattice whose arcs may pass several frames at once.

An arc leads from state ``s`` at frame ``t`` to ``s`` or ``s + 1`` at ``t + duration``:

    a[b, 0, 0] = 0
    a[b, t, s] = log_add over arcs (a[b, t - duration, s - symbols] + logp[b, t - duration, ...])
    score[b]   = a[b, T_b, S_b]

Symbol arcs end before frame ``T_b``, blank arcs at ``T_b`` only in the last state; arcs beyond do
not exist. That is the lattice of multi-blank transducers (Xu et al., arXiv:2211.03541) and of the
token-and-duration transducer (Xu et al., arXiv:2304.06795) as NeMo computes them, and of the
ordinary transducer with the durations 0 for symbols and 1 for the blank.

A step advances the front ``d = s + t``, as in ``panda_icefall.lattice.recursion``: the arcs that
lead to a front come from earlier ones, each kind from its own distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.first_order import first_order_only

NEG_INF = float("-inf")


@dataclass(frozen=True, eq=False)
class DurationArcs:
    """One kind of arcs.

    Attributes:
      logp: ``[B, T, S + 1]`` by the frame and the state they leave, nats; -inf: no such arc.
      duration: frames that they pass; 0 for symbols only.
      is_symbol: whether they lead to the next state.
    """

    logp: Tensor
    duration: int
    is_symbol: bool

    @property
    def distance(self) -> int:
        """Fronts that they pass."""
        return self.duration + int(self.is_symbol)


@opaque
def duration_recursion(arcs: Sequence[DurationArcs], frames: Tensor, states: Tensor) -> Tensor:
    """Log-probability of all paths, differentiable in the arcs.

    Args:
      arcs: all of one shape, dtype and device; durations of at least 1 for blanks and 0 for
        symbols.
      frames: int64 ``[B]``, T_b in ``[0, T]``.
      states: int64 ``[B]``, S_b in ``[0, S]``.

    Returns:
      The scores ``[B]`` in nats, in the arcs' dtype; -inf where no path ends at the last frame.

    Takes ``S + T`` steps of a few operations on ``[kinds, B, S + 1]``, and as many for the
    occupations, in float64 for any dtype and without a device sync. Arcs outside the utterance and
    those that no path takes have gradient 0, and so has every arc of an utterance with score -inf.
    """
    logps = [kind.logp for kind in arcs]
    kinds = [(kind.duration, int(kind.is_symbol)) for kind in arcs]
    if torch.is_grad_enabled() and any(logp.requires_grad for logp in logps):
        return _DurationScores.apply(kinds, frames, states, *logps)
    return _forward(logps, kinds, frames, states)[0].to(logps[0].dtype)


Kinds = list[tuple[int, int]]


class _DurationScores(torch.autograd.Function):
    """Scores whose gradient is computed with them."""

    @staticmethod
    def forward(ctx: Any, kinds: Kinds, frames: Tensor, states: Tensor, *logps: Tensor) -> Tensor:
        scores, terms, a = _forward(logps, kinds, frames, states)
        occupations = _occupations(terms, a, kinds, frames, states, logps[0].shape)
        ctx.save_for_backward(*(x.to(logps[0].dtype) for x in occupations))
        return scores.to(logps[0].dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, scores_grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (
            occupation * scores_grad[:, None, None] if needed else None
            for occupation, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[3:])
        )
        return (None, None, None, *grads)


def _forward(
    logps: Sequence[Tensor], kinds: Kinds, frames: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores ``[B]``, the terms of each log_add ``[D, kinds, B, S+1]`` and their sums ``a``.

    All float64; ``D = S + T + 1`` fronts, terms by the front and the state that they lead to.
    """
    B, T, S1 = logps[0].shape
    D, device = S1 + T, logps[0].device
    terms = torch.full((D, len(kinds), B, S1), NEG_INF, dtype=torch.float64, device=device)
    for place, view, part in _places(terms, kinds, (B, T, S1)):
        closed = _closed(kinds[place], frames, states, part)
        view.copy_(logps[place][:, : part[0], : part[1]].masked_fill(closed, NEG_INF))
    a = torch.full((D, B, S1), NEG_INF, dtype=torch.float64, device=device)
    a[0, :, 0] = 0
    for d in range(1, D):
        for k, (duration, symbols) in enumerate(kinds):
            source = d - duration - symbols
            if source >= 0:
                terms[d, k, :, symbols:] += a[source, :, : S1 - symbols]
        torch.logsumexp(terms[d], dim=0, out=a[d])
    utterance = torch.arange(B, device=device)
    return a[frames + states, utterance, states], terms, a


def _occupations(
    terms: Tensor, a: Tensor, kinds: Kinds, frames: Tensor, states: Tensor, shape: torch.Size
) -> list[Tensor]:
    """The occupations of each kind's arcs, ``[B, T, S+1]``; overwrites ``terms``.

    A state hands its occupation to the arcs that lead to it, in the shares of their terms.
    """
    D, B, S1 = a.shape
    terms.sub_(a.unsqueeze(1)).exp_()
    terms.masked_fill_((a == NEG_INF).unsqueeze(1), 0)  # a share of -inf in -inf is NaN
    occupied = torch.zeros_like(a)
    utterance = torch.arange(B, device=a.device)
    reached = (a[frames + states, utterance, states] > NEG_INF).to(a.dtype)
    occupied[frames + states, utterance, states] = reached
    for d in range(D - 1, 0, -1):
        terms[d] *= occupied[d]
        for k, (duration, symbols) in enumerate(kinds):
            source = d - duration - symbols
            if source >= 0:
                occupied[source, :, : S1 - symbols] += terms[d, k, :, symbols:]
    found = [a.new_zeros(shape) for _ in kinds]
    for place, view, (t, s) in _places(terms, kinds, shape):
        found[place][:, :t, :s] = view
    return found


def _places(
    terms: Tensor, kinds: Kinds, shape: tuple[int, ...]
) -> list[tuple[int, Tensor, tuple[int, int]]]:
    """Each kind's arcs ``[B, t, s]`` as a view of the terms, and how many frames and states leave.

    The arc that leaves ``(b, t, s)`` lies on front ``t + s + distance``, in the column of the state
    it leads to: a fixed stride for each of the letters.
    """
    B, T, S1 = shape
    column, row = S1, terms.stride(0)
    found = []
    for k, (duration, symbols) in enumerate(kinds):
        t, s = T + (not symbols) - duration, S1 - symbols
        if t > 0 and s > 0:
            t = min(t, T)
            offset = (duration + symbols) * row + k * B * column + symbols
            view = terms.as_strided((B, t, s), (column, row, row + 1), offset)
            found.append((k, view, (t, s)))
    return found


def _closed(kind: tuple[int, int], frames: Tensor, states: Tensor, part: tuple[int, int]) -> Tensor:
    """Arcs that do not exist in their utterance, bool ``[B, t, s]``."""
    duration, symbols = kind
    t = torch.arange(part[0], device=frames.device)[None, :, None] + duration
    s = torch.arange(part[1], device=frames.device)[None, None, :] + symbols
    last_frame, last_state = frames[:, None, None], states[:, None, None]
    ends = t >= last_frame if symbols else (t > last_frame) | ((t == last_frame) & (s < last_state))
    return ends | (s > last_state)
