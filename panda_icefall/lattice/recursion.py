"""The recursion over ``(s, t)``: total score of all paths, and the occupation of every arc.

    p[b, s_begin, t_begin] = 0
    p[b, s, t] = log_add(p[b, s-1, t'] + px[b, s-1, t'], p[b, s, t-1] + py[b, s, t-1])
    score[b]   = p[b, s_end, t_end]

with ``t' = t`` in the regular lattice and ``t' = t - 1`` in the modified and constrained ones, as
in ``k2.mutual_information_recursion``.

The arcs are stored *by step*: step ``d`` advances every state on one front at once.
The front is the anti-diagonal ``d = s + t`` of the regular lattice and the frame ``d = t`` of the
other two, so both are one loop, ``a[d+1, s] = log_add(a[d, s-1] + x[d, s], a[d, s] + y[d, s])``,
of a few operations on ``[B, S+1]``.

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
from panda_icefall.first_order import first_order_only
from panda_icefall.lattice.validation import check_recursion_inputs

NEG_INF = float("-inf")

Scores = Tensor | tuple[Tensor, tuple[Tensor, Tensor]]


@opaque
def torch_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None = None, return_grad: bool = False
) -> Scores:
    """``mutual_information_recursion`` in plain torch, batched over utterances and fronts.

    Arguments, results and errors are those of ``mutual_information_recursion``. Takes ``S + T``
    steps (regular) or ``T`` steps (modified, constrained) of three operations on ``[B, S+1]``, in
    the dtype of the arcs, without a device sync inside. Arcs outside the boundary and arcs that no
    path takes have gradient 0, all of them where the score is -inf. A NaN arc inside the boundary
    makes the score of its utterance NaN and its gradients NaN, those of other utterances unchanged.
    """
    check_recursion_inputs(px, py, boundary)
    return unchecked_torch_recursion(px, py, boundary, return_grad)


def unchecked_torch_recursion(
    px: Tensor, py: Tensor, boundary: Tensor | None, return_grad: bool
) -> Scores:
    """``torch_recursion`` of arguments that were checked."""
    has_grad = torch.is_grad_enabled() and (px.requires_grad or py.requires_grad)
    with torch.no_grad():
        scores, px_grad, py_grad = _run(px, py, boundary, has_grad or return_grad)
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
    """Scores ``[B]`` and, with ``with_grad``, the occupations shaped as ``px`` and ``py``."""
    B, S, _ = px.shape
    x, y = _by_step(px, py)  # [D, B, S+1] each
    limits = None if boundary is None else _Limits(boundary, px, py)
    if limits is not None:
        limits.close(x, y)
    a = _forward(x, y, None if boundary is None else boundary[:, 0])
    last = a.new_zeros(B, S + 1)
    if boundary is None:
        last[:, S] = 1
        scores = a[-1, :, S + 1].clone()
    else:
        last.scatter_(1, boundary[:, 2:3], 1)
        scores = a[-1].gather(1, boundary[:, 2:3] + 1).squeeze(1)
    if not with_grad:
        return scores, None, None
    _backward(x, y, a[1:, :, 1:], last)
    if limits is not None:
        limits.clear(x, y)
    x_view, y_view = _views(x, y, px, py)
    return scores, x_view.contiguous(), y_view.contiguous()


def _by_step(px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """The arcs in step order, ``[D, B, S+1]``, by the state they lead to; -inf where there is none.

    ``D`` is ``S + T`` in the regular lattice and ``T`` in the others.
    """
    B, S, T1 = px.shape
    T = py.shape[2]
    D = T if T1 == T else S + T
    x = px.new_full((D, B, S + 1), NEG_INF)
    y = torch.full_like(x, NEG_INF)
    x_view, y_view = _views(x, y, px, py)
    x_view.copy_(px)
    y_view.copy_(py)
    return x, y


def _views(x: Tensor, y: Tensor, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the step buffers in the layout of ``px`` and ``py``; no index tensor is needed.

    The element ``(b, s, t)`` lies at step ``s + t`` or ``t``: a fixed stride for each of the
    letters.
    """
    B, S, T1 = px.shape
    row = B * (S + 1)
    s_stride = 1 if py.shape[2] == T1 else row + 1
    strides = (S + 1, s_stride, row)
    # A symbol arc leads from s to s+1, so it lies one column to the right.
    return x.as_strided(px.shape, strides, 1), y.as_strided(py.shape, strides, 0)


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


def _forward(x: Tensor, y: Tensor, s_begin: Tensor | None) -> Tensor:
    """Log-probs of all states ``[D+1, B, S+2]``, state s in column s+1, column 0 always -inf.

    Overwrites ``x`` and ``y`` with the two terms of each log_add.
    """
    D, B, S1 = x.shape
    a = x.new_full((D + 1, B, S1 + 1), NEG_INF)
    if s_begin is None:
        a[0, :, 1] = 0
    else:
        a[0].scatter_(1, s_begin.unsqueeze(1) + 1, 0)
    stay = a[:, :, 1:].unbind(0)
    move = a[:, :, :-1].unbind(0)
    for d, (x_d, y_d) in enumerate(zip(x.unbind(0), y.unbind(0))):
        x_d.add_(move[d])
        y_d.add_(stay[d])
        torch.logaddexp(x_d, y_d, out=stay[d + 1])
    return a


def _backward(x: Tensor, y: Tensor, total: Tensor, last: Tensor) -> None:
    """Overwrite the log_add terms ``x``, ``y`` with the occupations of their arcs.

    A state hands its occupation to the two arcs that lead to it, in the shares
    ``sigmoid(x - y)`` and ``sigmoid(y - x)``: both at most 1 and together 1, whatever the size of
    the scores. ``last [B, S+1]`` is the occupation of the final states; it is overwritten.
    """
    unreached = total == NEG_INF
    x.sub_(y)
    torch.neg(x, out=y)
    x.sigmoid_().masked_fill_(unreached, 0)
    y.sigmoid_().masked_fill_(unreached, 0)
    occupied = last
    for x_d, y_d in zip(reversed(x.unbind(0)), reversed(y.unbind(0))):
        x_d.mul_(occupied)
        y_d.mul_(occupied)
        occupied.copy_(y_d)
        occupied[:, :-1].add_(x_d[:, 1:])
