"""The recursion over the band in Triton: one program per utterance, all its fronts in one launch.

What ``panda_icefall.lattice.banded`` does with three operations per front for the whole batch,
these kernels do with the columns of one utterance in registers, in the same buffers and in float64.
This module imports Triton, so it is imported where its functions are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from panda_icefall.lattice.band_layout import BandLayout

NEG_INF = tl.constexpr(float("-inf"))


def forward(target_logp: Tensor, blank_logp: Tensor, layout: BandLayout) -> tuple[Tensor, Tensor]:
    """Scores ``[B]``, and for ``occupations`` the share of each arc in the state it leads to.

    Both are float64. An unreached state has shares 0, so all are where an utterance has no path.

    Args:
      target_logp, blank_logp: float32 or float64 ``[B, T, s_range]``.
      layout: of their band.
    """
    terms = layout.by_step(target_logp, blank_logp)
    D, B, _, s_range = layout.shape
    scores = terms.new_empty(B)
    if B:
        with torch.cuda.device_of(terms):
            _forward[(B,)](
                terms, scores, layout.first_column, layout.last_column,
                layout.is_closed.to(torch.uint8), D, B, s_range, **_columns(s_range),
            )  # fmt: skip
    return scores, terms


def occupations(shares: Tensor, layout: BandLayout) -> tuple[Tensor, Tensor]:
    """The occupations of the symbol and of the blank arcs, float64 ``[B, T, s_range]``.

    Args:
      shares: of ``forward``; overwritten.
      layout: of their band.
    """
    D, B, _, s_range = layout.shape
    if D * B:
        last_step = shares[(D - 1) * B * 2 * s_range :]
        with torch.cuda.device_of(shares):
            _occupy[(B,)](last_step, layout.last_column, D, B, s_range, **_columns(s_range))
    return layout.by_site(shares)


def _columns(s_range: int) -> dict[str, int]:
    # One warp: a second one could still have to read what the first overwrites in place.
    return {"COLUMNS": triton.next_power_of_2(s_range), "num_warps": 1}


@triton.jit
def _forward(
    terms, scores, first_column, last_column, is_closed, D, B, s_range, COLUMNS: tl.constexpr
):
    """Overwrites the arcs of every step, ``terms [D, B, 2, s_range]``, with their shares."""
    b = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    exists = column < s_range
    # Column c takes its symbol arc from column c-1, the first one from the last.
    source = tl.where(column == 0, s_range - 1, column - 1)
    is_source = source[:, None] == column[None, :]
    is_first = (column == tl.load(first_column + b)) & (tl.load(is_closed + b) == 0)
    a = tl.where(is_first, 0.0, NEG_INF).to(tl.float64)
    place = terms + b.to(tl.int64) * 2 * s_range + column
    row = B * 2 * s_range
    symbol_logp = tl.load(place, mask=exists & (D > 0), other=NEG_INF)
    blank_logp = tl.load(place + s_range, mask=exists & (D > 0), other=NEG_INF)
    for step in range(D):
        # The arcs of the next step are on their way while those of this one are added.
        has_next = exists & (step + 1 < D)
        next_symbol_logp = tl.load(place + row, mask=has_next, other=NEG_INF)
        next_blank_logp = tl.load(place + row + s_range, mask=has_next, other=NEG_INF)
        symbol = symbol_logp + tl.sum(tl.where(is_source, a[None, :], 0.0), axis=1)
        blank = blank_logp + a
        small = tl.exp(-tl.abs(symbol - blank))
        is_reached = (symbol != NEG_INF) | (blank != NEG_INF)
        a = tl.where(is_reached, tl.maximum(symbol, blank) + tl.log(1 + small), NEG_INF)
        larger_share = 1 / (1 + small)
        smaller_share = small * larger_share
        is_symbol_larger = symbol > blank
        symbol_share = tl.where(is_symbol_larger, larger_share, smaller_share)
        blank_share = tl.where(is_symbol_larger, smaller_share, larger_share)
        tl.store(place, tl.where(is_reached, symbol_share, 0.0), mask=exists)
        tl.store(place + s_range, tl.where(is_reached, blank_share, 0.0), mask=exists)
        symbol_logp = next_symbol_logp
        blank_logp = next_blank_logp
        place += row
    is_last = column == tl.load(last_column + b)
    tl.store(scores + b, tl.sum(tl.where(is_last, a, 0.0), axis=0))


@triton.jit
def _occupy(last_step, last_column, D, B, s_range, COLUMNS: tl.constexpr):
    """Overwrites the shares with the occupations of their arcs, from the last step back."""
    b = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    exists = column < s_range
    # A state in column c hands its symbol share to the one in column c-1.
    target = tl.where(column == s_range - 1, 0, column + 1)
    is_target = target[:, None] == column[None, :]
    occupied = tl.where(column == tl.load(last_column + b), 1.0, 0.0).to(tl.float64)
    row = B * 2 * s_range
    place = last_step + b.to(tl.int64) * 2 * s_range + column
    symbol_share = tl.load(place, mask=exists, other=0.0)
    blank_share = tl.load(place + s_range, mask=exists, other=0.0)
    for step in range(D):
        has_next = exists & (step + 1 < D)
        next_symbol_share = tl.load(place - row, mask=has_next, other=0.0)
        next_blank_share = tl.load(place - row + s_range, mask=has_next, other=0.0)
        symbol = symbol_share * occupied
        blank = blank_share * occupied
        tl.store(place, symbol, mask=exists)
        tl.store(place + s_range, blank, mask=exists)
        occupied = blank + tl.sum(tl.where(is_target, symbol[None, :], 0.0), axis=1)
        symbol_share = next_symbol_share
        blank_share = next_blank_share
        place -= row
