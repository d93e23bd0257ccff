"""The recursion over ``(s, t)``: total score of all paths, and the occupation of every arc.

    p[b, s_begin, t_begin] = 0
    p[b, s, t] = log_add(p[b, s-1, t'] + px[b, s-1, t'], p[b, s, t-1] + py[b, s, t-1])
    score[b]   = p[b, s_end, t_end]

with ``t' = t`` in the regular lattice and ``t' = t - 1`` in the modified and constrained ones, as
in ``k2.mutual_information_recursion``.

The arcs are stored *by step*: step ``d`` advances every state on one front at once.
The front is the anti-diagonal ``d = s + t`` of the regular lattice and the frame ``d = t`` of the
other two, so both are one loop, ``a[d+1, s] = log_add(a[d, s-1] + x[d, s], a[d, s] + y[d, s])``,
of two operations on ``[B, S+1]`` or twice as much.

The fronts are overlapping views of one buffer, written and read in turn. Inductor of torch 2.13
fuses these steps in a wrong order: the scores of a compiled recursion with a boundary are -inf,
while its backends without fusion, and inductor with ``max_fusion_size=1``, are right. So nothing of
this is compiled, see ``panda_icefall.dynamo``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.engine_choice import is_triton_chosen
from panda_icefall.first_order import first_order_only
from panda_icefall.lattice.validation import check_recursion_inputs

NEG_INF = float("-inf")

Scores = Tensor | tuple[Tensor, tuple[Tensor, Tensor]]


@opaque
def exact_recursion(
    px: Tensor,
    py: Tensor,
    boundary: Tensor | None = None,
    return_grad: bool = False,
    engine: str = "auto",
) -> Scores:
    """``mutual_information_recursion`` in float64 for any dtype of the arcs.

    Arguments, results and errors are those of ``mutual_information_recursion``.

    Args:
      engine: ``torch``, ``triton``, or ``auto``: Triton on CUDA where it runs, else torch.

    Takes ``S + T`` steps (regular) or ``T`` steps (modified, constrained) of two operations, and as
    many again for the occupations; with Triton one launch each. No device sync inside. Scores and
    occupations are exact to the rounding of the arcs' dtype, however large the scores. Arcs outside
    the boundary and arcs that no path takes have gradient 0, all of them where the score is -inf. A
    NaN arc inside the boundary makes the score of its utterance NaN and its gradients NaN or 0,
    those of other utterances unchanged.

    Raises:
      MissingEngineError: if Triton is asked for and not installed.
    """
    check_recursion_inputs(px, py, boundary)
    return unchecked_exact_recursion(px, py, boundary, return_grad, engine)


def unchecked_exact_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None, return_grad: bool, engine: str = "auto"
) -> Scores:
    """``exact_recursion`` of arguments that were checked."""
    has_grad = torch.is_grad_enabled() and (px.requires_grad or py.requires_grad)
    run = _run_in_triton if is_triton_chosen(engine, px.device) else _run
    with torch.no_grad():
        scores, px_grad, py_grad = run(px, py, boundary, has_grad or return_grad)
        scores = scores.to(px.dtype)
    if has_grad:
        scores = _AttachOccupations.apply(px, py, scores, px_grad, py_grad)
    if return_grad:
        assert px_grad is not None
        assert py_grad is not None
        return scores, (px_grad, py_grad)
    return scores


class _AttachOccupations(torch.autograd.Function):
    """Make scores that are computed already differentiable in the arcs they came from."""

    @staticmethod
    def forward(
        ctx: Any, px: Tensor, py: Tensor, scores: Tensor, px_grad: Tensor, py_grad: Tensor
    ) -> Tensor:
        ctx.save_for_backward(px_grad, py_grad)
        return scores.clone()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, scores_grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = scores_grad.reshape(-1, 1, 1)
        px_grad, py_grad = (
            grad * scale if needed else None
            for grad, needed in zip(ctx.saved_tensors, ctx.needs_input_grad)
        )
        return px_grad, py_grad, None, None, None


def _run(
    px: Tensor, py: Tensor, boundary: Tensor | None, with_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scores ``[B]``, float64, and, with ``with_grad``, the occupations as ``px`` and ``py``."""
    B, S, _ = px.shape
    steps = _by_step(px, py)  # [D, B, 2, S+2]
    x, y = steps[..., : S + 1].unbind(2)
    limits = None if boundary is None else _Limits(boundary, px, py)
    if limits is not None:
        limits.close(x, y)
    a = _forward(steps, None if boundary is None else boundary[:, 0])
    last = a.new_zeros(B, 1, S + 1)
    if boundary is None:
        last[:, :, S] = 1
        scores = a[-1, :, S + 1].clone()
    else:
        last.scatter_(2, boundary[:, None, 2:3], 1)
        scores = a[-1].gather(1, boundary[:, 2:3] + 1).squeeze(1)
    if not with_grad:
        return scores, None, None
    _backward(steps, a[1:, :, 1:], last)
    if limits is not None:
        limits.clear(x, y)
    x_view, y_view = _views(steps, px, py)
    return scores, _packed(x_view, px.dtype), _packed(y_view, py.dtype)


def _run_in_triton(
    px: Tensor, py: Tensor, boundary: Tensor | None, with_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``_run`` by Triton's kernels."""
    from panda_icefall.lattice import triton_lattice

    scores, shares = triton_lattice.forward(px, py, boundary)
    if not with_grad:
        return scores, None, None
    return scores, *triton_lattice.occupations(px, py, boundary, shares)


def _packed(view: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy in a dtype."""
    return torch.empty(view.shape, dtype=dtype, device=view.device).copy_(view)


def _by_step(px: Tensor, py: Tensor) -> Tensor:
    """The arcs in step order, ``[D, B, 2, S+2]``, by the state they lead to.

    In float64; symbol arcs in row 0, blank arcs in row 1, -inf where there is none. ``D`` is
    ``S + T`` in the regular lattice and ``T`` in the others. No arc leads to the last column.
    """
    B, S, T1 = px.shape
    T = py.shape[2]
    D = T if T1 == T else S + T
    steps = px.new_full((D, B, 2, S + 2), NEG_INF, dtype=torch.float64)
    x_view, y_view = _views(steps, px, py)
    x_view.copy_(px)
    y_view.copy_(py)
    return steps


def _views(steps: Tensor, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the step buffer in the layout of ``px`` and ``py``; no index tensor is needed.

    The element ``(b, s, t)`` lies at step ``s + t`` or ``t``: a fixed stride for each of the
    letters.
    """
    B, S, T1 = px.shape
    width = S + 2
    row = B * 2 * width
    s_stride = 1 if py.shape[2] == T1 else row + 1
    strides = (2 * width, s_stride, row)
    # A symbol arc leads from s to s+1, so it lies one column to the right.
    return steps.as_strided(px.shape, strides, 1), steps.as_strided(py.shape, strides, width)


class _Limits:
    """Confines the step buffers to each utterance's boundary.

    An utterance waits in its first state until its own first step and in its last state after its
    own last step, over blank arcs of log-prob 0. So every utterance starts at step 0 and ends at
    step D, and the loops need no case for ragged batches.
    """

    def __init__(self, boundary: Tensor, px: Tensor, py: Tensor) -> None:
        B, S, T1 = px.shape
        T = py.shape[2]
        is_regular = T1 != T
        s_begin, t_begin, s_end, t_end = boundary.reshape(1, B, 4, 1).unbind(2)  # [1, B, 1]
        D = S + T if is_regular else T
        step = torch.arange(D, device=px.device).reshape(D, 1, 1)
        s = torch.arange(S + 1, device=px.device)  # the state an arc leads to
        # A blank arc leaves the state it leads to, a symbol arc the one before.
        y_frame = step - s if is_regular else step
        x_frame = y_frame + 1 if is_regular else step
        x_end = t_end + 1 if is_regular else t_end
        first = s_begin + t_begin if is_regular else t_begin
        last = s_end + t_end if is_regular else t_end
        self.x_outside = (s <= s_begin) | (s > s_end) | (x_frame < t_begin) | (x_frame >= x_end)
        self.y_outside = (s < s_begin) | (s > s_end) | (y_frame < t_begin) | (y_frame >= t_end)
        self.waits = ((s == s_begin) & (step < first)) | ((s == s_end) & (step >= last))

    def close(self, x: Tensor, y: Tensor) -> None:
        """Leave no arc outside the boundary but the waiting ones."""
        x.masked_fill_(self.x_outside, NEG_INF)
        y.masked_fill_(self.y_outside, NEG_INF).masked_fill_(self.waits, 0)

    def clear(self, x: Tensor, y: Tensor) -> None:
        """Drop the occupations outside the boundary, those of the waiting arcs among them."""
        x.masked_fill_(self.x_outside, 0)
        y.masked_fill_(self.y_outside, 0)


def _forward(steps: Tensor, s_begin: Tensor | None) -> Tensor:
    """Log-probs of all states ``[D+1, B, S+2]``, state s in column s+1, column 0 always -inf.

    Overwrites ``steps`` with the two terms of each log_add.
    """
    D, B, _, width = steps.shape
    a = steps.new_full((D + 1, B, width), NEG_INF)
    if s_begin is None:
        a[0, :, 1] = 0
    else:
        a[0].scatter_(1, s_begin.unsqueeze(1) + 1, 0)
    # Row 0 is one state behind row 1.
    sources = a.as_strided((D, B, 2, width - 1), (B * width, width, 1, 1)).unbind(0)
    terms = steps[..., :-1]
    symbols, blanks = terms.unbind(2)
    for step, source, symbol, blank, total in zip(
        terms.unbind(0), sources, symbols.unbind(0), blanks.unbind(0), a[1:, :, 1:].unbind(0)
    ):
        step.add_(source)
        torch.logaddexp(symbol, blank, out=total)
    return a


def _backward(steps: Tensor, total: Tensor, last: Tensor) -> None:
    """Overwrite the log_add terms ``steps`` with the occupations of their arcs.

    A state hands its occupation to the two arcs that lead to it, in the shares
    ``sigmoid(x - y)`` and ``sigmoid(y - x)``: both at most 1 and together 1, whatever the size of
    the scores. ``last [B, 1, S+1]`` is the occupation of the final states; it is overwritten.
    """
    terms = steps[..., :-1]
    symbols, blanks = terms.unbind(2)
    symbols.sub_(blanks)
    torch.neg(symbols, out=blanks)
    terms.sigmoid_().masked_fill_((total == NEG_INF).unsqueeze(2), 0)
    steps[..., -1].zero_()
    after = steps[:, :, :1, 1:]  # of the state after each
    stay = steps[:, :, 1:, :-1]
    for step, blank, symbol in zip(*(reversed(x.unbind(0)) for x in (terms, stay, after))):
        step.mul_(last)
        torch.add(blank, symbol, out=last)
