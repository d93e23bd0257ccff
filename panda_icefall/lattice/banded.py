"""The recursion over the band of retained states, at ``O(B (S + T) s_range)`` memory and work.

A pruned lattice keeps ``s_range`` consecutive states per frame, so the arcs of all others need not
exist as -inf in ``[B, S, T+1]``. As in ``panda_icefall.lattice.recursion`` a step advances one
front, the anti-diagonal ``d = s + t`` of the regular lattice or the frame ``d = t`` of the other
two:

    a[d+1, s] = log_add(a[d, s-1] + x[d, s], a[d, s] + y[d, s])

State ``s`` lives in column ``s % s_range`` on every front, see
``panda_icefall.lattice.band_layout``: a blank arc stays in its column, a symbol arc leads one
column to the right, from the last one to the first. No column is looked up or shifted inside the
loop, however the band moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.engine_choice import is_triton_chosen
from panda_icefall.first_order import first_order_only
from panda_icefall.lattice.band_layout import BandLayout
from panda_icefall.lattice.validation import check_band

NEG_INF = float("-inf")
# A Triton program holds s_range x s_range numbers in the registers of one warp.
WIDEST_IN_TRITON = 32


@opaque
def banded_recursion(
    target_logp: Tensor,
    blank_logp: Tensor,
    ranges: Tensor,
    S: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    engine: str = "auto",
    *,
    is_checked: bool = False,
) -> Tensor:
    """Log-probability of all paths through the retained sites, differentiable in both log-probs.

    Equal to ``k2.mutual_information_recursion`` on the arcs of ``k2.get_rnnt_logprobs_pruned``
    without materialising those, ``[B, S, T+1]`` and ``[B, S+1, T]``.

    Args:
      target_logp: float32 or float64 ``[B, T, s_range]``, log-prob of the next symbol at each site,
        nats; -inf means no such arc.
      blank_logp: the same of the termination symbol.
      ranges: int64 ``[B, T, s_range]``, consecutive states per frame, of which only the first is
        read; it may rise or fall by any number. States outside the boundary do not count, those
        beyond S among them.
      S: symbols in the padded batch.
      boundary: int64 ``[B, 4]`` rows ``s_begin, t_begin, s_end, t_end``; ``[0, 0, S, T]`` if None.
      rnnt_type: ``regular``, ``modified`` or ``constrained``, as in k2.
      engine: ``torch``, ``triton``, or ``auto``: Triton on CUDA where it is installed and s_range
        at most 32, else torch.
      is_checked: all of this is known to fit: nothing is checked, which saves the device sync.

    Returns:
      The scores ``[B]`` in nats, in the dtype of the log-probs; -inf if no path stays in the band.

    Raises:
      ValueError: if a shape, a device, an option or a boundary row does not fit; the row is named.
      TypeError: if the log-probs are not both float32 or both float64, or an index is not int64.
      MissingEngineError: if Triton is asked for and not installed.

    Takes ``S + T`` steps (regular) or ``T`` steps of three operations on ``[B, s_range]`` (Triton:
    in one launch), as many again if there is a gradient to compute, in float64 for any dtype: the
    occupations are exact to the rounding of their own dtype, however large the scores. One device
    sync if there is a boundary. Arcs outside the boundary or the band are not read and have
    gradient 0, and so has every arc of an utterance with score -inf. A NaN on a path makes the
    score of its utterance NaN and its gradients NaN or 0, those of other utterances unchanged.
    """
    if not is_checked:
        check_band(target_logp, blank_logp, ranges, S, boundary, rnnt_type)
    if rnnt_type == "constrained":
        # The blank of the next state on the same frame belongs to the symbol arc.
        target_logp = target_logp + F.pad(blank_logp[..., 1:], (0, 1), value=NEG_INF)
    is_wide = engine == "auto" and ranges.shape[2] > WIDEST_IN_TRITON
    use_triton = not is_wide and is_triton_chosen(engine, target_logp.device)
    layout = BandLayout.of(ranges, S, boundary, is_regular=rnnt_type == "regular")
    if torch.is_grad_enabled() and (target_logp.requires_grad or blank_logp.requires_grad):
        return _BandedScores.apply(target_logp, blank_logp, layout, use_triton)
    forward, _ = _solver(use_triton)
    return forward(target_logp, blank_logp, layout)[0].to(target_logp.dtype)


class _BandedScores(torch.autograd.Function):
    """Scores whose gradient is computed with them: what is saved is two ``[B, T, s_range]``."""

    @staticmethod
    def forward(
        ctx: Any, target_logp: Tensor, blank_logp: Tensor, layout: BandLayout, use_triton: bool
    ) -> Tensor:
        forward, occupations = _solver(use_triton)
        scores, *sums = forward(target_logp, blank_logp, layout)
        dtype = target_logp.dtype
        ctx.save_for_backward(*(x.to(dtype) for x in occupations(*sums, layout)))
        return scores.to(dtype)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, scores_grad: Tensor) -> tuple[Tensor | None, ...]:
        target_grad, blank_grad = (
            occupation * scores_grad[:, None, None] if needed else None
            for occupation, needed in zip(ctx.saved_tensors, ctx.needs_input_grad)
        )
        return target_grad, blank_grad, None, None


def _solver(use_triton: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two functions: the scores with what the other one takes, and the occupations from that."""
    if use_triton:
        from panda_icefall.lattice import triton_band

        return triton_band.forward, triton_band.occupations
    return _forward, _occupations


def _forward(
    target_logp: Tensor, blank_logp: Tensor, layout: BandLayout
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores ``[B]``, both terms of each log_add ``[D * B * 2 * s_range + 1]``, their sums ``a``.

    All float64. ``a`` is ``[D+1, B, s_range+1]``: column ``c`` of a front is stored at ``c + 1``,
    and the last one again at 0, so that each has its left neighbour.
    """
    D, B, _, s_range = layout.shape
    terms = layout.by_step(target_logp, blank_logp)
    steps = terms[:-1].view(layout.shape)
    a = terms.new_full((D + 1, B, s_range + 1), NEG_INF)
    start = a.new_zeros(B, 1).masked_fill(layout.is_closed, NEG_INF)
    a[0].scatter_(1, layout.first_column + 1, start)
    a[0, :, 0] = a[0, :, s_range]
    sources = a.as_strided((D, B, 2, s_range), (B * (s_range + 1), s_range + 1, 1, 1)).unbind(0)
    for step, source, symbol, blank, total, left, right in zip(
        steps.unbind(0), sources, steps[:, :, 0].unbind(0), steps[:, :, 1].unbind(0),
        a[1:, :, 1:].unbind(0), a[1:, :, 0].unbind(0), a[1:, :, s_range].unbind(0),
    ):  # fmt: skip
        step.add_(source)
        torch.logaddexp(symbol, blank, out=total)
        left.copy_(right)
    return a[D].gather(1, layout.last_column + 1).squeeze(1), terms, a


def _occupations(terms: Tensor, a: Tensor, layout: BandLayout) -> tuple[Tensor, Tensor]:
    """The occupations of symbol and blank arcs, ``[B, T, s_range]``; overwrites ``terms``.

    A state hands its occupation to the two arcs that lead to it, in the shares
    ``sigmoid(symbol - blank)`` and ``sigmoid(blank - symbol)`` of their terms.
    """
    steps = terms[:-1].view(layout.shape)
    symbols, blanks = steps.unbind(2)
    symbols.sub_(blanks)
    torch.neg(symbols, out=blanks)
    steps.sigmoid_()
    # An unreached state has the share of -inf in -inf, NaN.
    steps.masked_fill_((a[1:, :, 1:] == NEG_INF).unsqueeze(2), 0)
    occupied = a.new_zeros(a.shape[1], 1, layout.shape[3]).scatter_(
        2, layout.last_column.unsqueeze(2), 1
    )
    inner, last = occupied[:, 0, :-1], occupied[:, 0, -1:]
    parts = (steps, blanks[..., :-1], symbols[..., 1:], blanks[..., -1:], symbols[..., :1])
    for step, stay_inner, move_inner, stay_last, move_last in zip(
        *(reversed(part.unbind(0)) for part in parts)
    ):
        step.mul_(occupied)
        torch.add(stay_inner, move_inner, out=inner)
        torch.add(stay_last, move_last, out=last)
    return layout.by_site(terms)
