"""The recursion over the full lattice in Triton: one program per utterance, any number of states.

What ``panda_icefall.lattice.recursion`` does with four operations per front for the whole
batch, these kernels do in one launch each way, in float64 as well. A program begins at the first
front of its utterance and ends at the last one, and reads and writes the arcs where they are.
Neighbouring states exchange their numbers through memory, as they may be held by different warps.
This module imports Triton, so it is imported where its functions are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

NEG_INF = tl.constexpr(float("-inf"))


def forward(px: Tensor, py: Tensor, boundary: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores ``[B]``, and for ``occupations`` the share of each arc in the state it leads to.

    Both are float64, the shares ``[B, D, 2, S+1]`` by step and state, symbol arcs in row 0; those
    of an unreached state are 0.

    Args:
      px, py, boundary: as of ``exact_recursion``.
    """
    B, S, T1 = px.shape
    T = py.shape[2]
    steps = T if T1 == T else S + T
    scores = torch.empty(B, dtype=torch.float64, device=px.device)
    shares = scores.new_empty(B, steps, 2, S + 1)
    if B:
        with torch.cuda.device_of(px):
            _forward[(B,)](
                px, *px.stride(), py, *py.stride(), shares, scores, *_lattice(px, py, boundary),
                **_columns(S),
            )  # fmt: skip
    return scores, shares


def occupations(
    px: Tensor, py: Tensor, boundary: Tensor | None, shares: Tensor
) -> tuple[Tensor, Tensor]:
    """The occupations of the symbol and of the blank arcs, shaped and typed as ``px``, ``py``.

    Args:
      px, py, boundary: as of ``forward``.
      shares: of ``forward``.
    """
    px_grad, py_grad = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (px, py))
    if len(shares):
        with torch.cuda.device_of(px):
            _occupy[(len(shares),)](
                px_grad, *px_grad.stride(), py_grad, *py_grad.stride(), shares,
                *_lattice(px, py, boundary), **_columns(px.shape[1]),
            )  # fmt: skip
    return px_grad, py_grad


def _lattice(px: Tensor, py: Tensor, boundary: Tensor | None) -> tuple[Tensor | int | None, ...]:
    """The last arguments of both kernels but the columns."""
    B, S, T1 = px.shape
    T = py.shape[2]
    exchange = torch.empty(B * 2 * _columns(S)["COLUMNS"], dtype=torch.float64, device=px.device)
    rows = None if boundary is None else boundary.contiguous()
    return exchange, rows, S, T, T1 != T


def _columns(S: int) -> dict[str, int]:
    # No more warps than columns fill: the others would only repeat what those do.
    # The interpreter of Triton 3.2 takes a mask of a single False for no mask.
    columns = max(2, triton.next_power_of_2(S + 1))
    return {"COLUMNS": columns, "num_warps": min(max(columns // 32, 1), 16)}


@triton.jit
def _limits_of(b, boundary, S, T):
    """``s_begin, t_begin, s_end, t_end`` of an utterance."""
    if boundary is not None:
        s_begin = tl.load(boundary + 4 * b)
        t_begin = tl.load(boundary + 4 * b + 1)
        s_end = tl.load(boundary + 4 * b + 2)
        t_end = tl.load(boundary + 4 * b + 3)
    else:
        s_begin = b * 0
        t_begin = b * 0
        s_end = b * 0 + S
        t_end = b * 0 + T
    return s_begin, t_begin, s_end, t_end


@triton.jit
def _arcs_to(s, step, s_begin, t_begin, s_end, t_end, IS_REGULAR: tl.constexpr):
    """Of the arcs that lead to the states ``s`` in a step: their frames, and whether they exist.

    A blank arc leaves the state it leads to, a symbol arc the one before.
    """
    if IS_REGULAR:
        blank_frame = t_begin + step - (s - s_begin)
        symbol_frame = blank_frame + 1
        symbol_end = t_end + 1
    else:
        blank_frame = t_begin + step + s * 0
        symbol_frame = blank_frame
        symbol_end = t_end
    is_inside = (s >= s_begin) & (s <= s_end)
    has_blank = is_inside & (blank_frame >= t_begin) & (blank_frame < t_end)
    has_symbol = is_inside & (s > s_begin) & (symbol_frame >= t_begin) & (symbol_frame < symbol_end)
    return symbol_frame, has_symbol, blank_frame, has_blank


@triton.jit
def _neighbour(values, exchange, s, distance: tl.constexpr, COLUMNS: tl.constexpr, other):
    """What state ``s + distance`` has.

    One barrier a call is enough where two halves of a buffer are used in turn.
    """
    tl.store(exchange + s, values)
    tl.debug_barrier()
    at = s + distance
    return tl.load(exchange + at, mask=(at >= 0) & (at < COLUMNS), other=other)


@triton.jit
def _forward(
    px, px_b, px_s, px_t, py, py_b, py_s, py_t, shares, scores, exchange, boundary, S, T,
    IS_REGULAR: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``x_b``, ``x_s`` and ``x_t`` are strides in elements."""
    b = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, COLUMNS).to(tl.int64)
    s_begin, t_begin, s_end, t_end = _limits_of(b, boundary, S, T)
    steps = t_end - t_begin
    most_steps = T
    if IS_REGULAR:
        steps += s_end - s_begin
        most_steps = S + T
    symbol_place = px + b * px_b + (s - 1) * px_s
    blank_place = py + b * py_b + s * py_s
    share_place = shares + b * most_steps * 2 * (S + 1) + s
    exchange += b * 2 * COLUMNS

    a = tl.where(s == s_begin, 0.0, NEG_INF).to(tl.float64)
    symbol_frame, has_symbol, blank_frame, has_blank = _arcs_to(
        s, 0, s_begin, t_begin, s_end, t_end, IS_REGULAR
    )
    symbol_logp = tl.load(symbol_place + symbol_frame * px_t, mask=has_symbol, other=NEG_INF)
    blank_logp = tl.load(blank_place + blank_frame * py_t, mask=has_blank, other=NEG_INF)
    for step in range(steps.to(tl.int32)):
        # The arcs of the next step are on their way while those of this one are added. After the
        # last step there are none.
        symbol_frame, has_symbol, blank_frame, has_blank = _arcs_to(
            s, step + 1, s_begin, t_begin, s_end, t_end, IS_REGULAR
        )
        next_symbol_logp = tl.load(
            symbol_place + symbol_frame * px_t, mask=has_symbol, other=NEG_INF
        )
        next_blank_logp = tl.load(blank_place + blank_frame * py_t, mask=has_blank, other=NEG_INF)
        left = _neighbour(a, exchange + (step % 2) * COLUMNS, s, -1, COLUMNS, NEG_INF)
        symbol = symbol_logp.to(tl.float64) + left
        blank = blank_logp.to(tl.float64) + a
        small = tl.exp(-tl.abs(symbol - blank))
        is_reached = (symbol != NEG_INF) | (blank != NEG_INF)
        a = tl.where(is_reached, tl.maximum(symbol, blank) + tl.log(1 + small), NEG_INF)
        larger_share = 1 / (1 + small)
        smaller_share = small * larger_share
        is_symbol_larger = symbol > blank
        symbol_share = tl.where(is_symbol_larger, larger_share, smaller_share)
        blank_share = tl.where(is_symbol_larger, smaller_share, larger_share)
        tl.store(share_place, tl.where(is_reached, symbol_share, 0.0), mask=s <= S)
        tl.store(share_place + S + 1, tl.where(is_reached, blank_share, 0.0), mask=s <= S)
        symbol_logp = next_symbol_logp
        blank_logp = next_blank_logp
        share_place += 2 * (S + 1)
    tl.store(scores + b, tl.sum(tl.where(s == s_end, a, 0.0), axis=0))


@triton.jit
def _occupy(
    px_grad, px_b, px_s, px_t, py_grad, py_b, py_s, py_t, shares, exchange, boundary, S, T,
    IS_REGULAR: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Writes the occupations of the arcs that exist, from the last step back."""
    b = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, COLUMNS).to(tl.int64)
    s_begin, t_begin, s_end, t_end = _limits_of(b, boundary, S, T)
    steps = t_end - t_begin
    most_steps = T
    if IS_REGULAR:
        steps += s_end - s_begin
        most_steps = S + T
    symbol_place = px_grad + b * px_b + (s - 1) * px_s
    blank_place = py_grad + b * py_b + s * py_s
    row = 2 * (S + 1)
    share_place = shares + (b * most_steps + steps - 1) * row + s
    exchange += b * 2 * COLUMNS

    # A state hands its symbol share to the state before it.
    occupied = tl.where(s == s_end, 1.0, 0.0).to(tl.float64)
    has_step = (s <= S) & (steps > 0)
    symbol_share = tl.load(share_place, mask=has_step, other=0.0)
    blank_share = tl.load(share_place + S + 1, mask=has_step, other=0.0)
    for back in range(steps.to(tl.int32)):
        step = steps - 1 - back
        share_place -= row
        has_step = (s <= S) & (step > 0)
        next_symbol_share = tl.load(share_place, mask=has_step, other=0.0)
        next_blank_share = tl.load(share_place + S + 1, mask=has_step, other=0.0)
        symbol = symbol_share * occupied
        blank = blank_share * occupied
        symbol_frame, has_symbol, blank_frame, has_blank = _arcs_to(
            s, step, s_begin, t_begin, s_end, t_end, IS_REGULAR
        )
        grad_dtype = px_grad.dtype.element_ty
        tl.store(symbol_place + symbol_frame * px_t, symbol.to(grad_dtype), mask=has_symbol)
        tl.store(blank_place + blank_frame * py_t, blank.to(grad_dtype), mask=has_blank)
        right = _neighbour(symbol, exchange + (back % 2) * COLUMNS, s, 1, COLUMNS, 0.0)
        occupied = blank + right
        symbol_share = next_symbol_share
        blank_share = next_blank_share
