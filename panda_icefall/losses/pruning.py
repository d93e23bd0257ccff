"""Which sites of the lattice are kept, and the joiner inputs of those sites."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.validation import check_boundary_form
from panda_icefall.losses.host_values import boundary_on_host

logger = logging.getLogger(__name__)


@opaque
def get_rnnt_prune_ranges(
    px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int
) -> Tensor:
    """The band of ``s_range`` states per frame that holds most of the occupation.

    Equal to ``k2.get_rnnt_prune_ranges``; the method is section 3.2 of the pruned RNN-T paper
    (arXiv:2206.13236).

    Args:
      px_grad: ``[B, S, T+1]`` (regular) or ``[B, S, T]`` (modified, constrained) occupations of the
        symbol arcs, from a loss with ``return_grad=True``.
      py_grad: ``[B, S+1, T]`` occupations of the blank arcs.
      boundary: int64 ``[B, 4]`` rows ``s_begin, t_begin, s_end, t_end``.
      s_range: states to keep per frame, at least 2 in the regular lattice and 1 in the others.
        Raised, with a warning logged, where the longest transcript could not be reached at that
        width; never more than ``S + 1``.

    Returns:
      int64 ``[B, T, s_range]``, consecutive states: the first starts at 0, never falls, rises by
      less than ``s_range`` (by 1 at most in the modified lattice) per frame, and the band of the
      last frame of an utterance ends at its last state.

    Raises:
      ValueError: if a shape, a boundary row or ``s_range`` does not fit.
      TypeError: if the boundary is not int64.

    One device sync, or none where the simple loss of this step was given the same boundary.
    """
    if px_grad.ndim != 3:
        raise ValueError(
            f"px_grad: got shape {tuple(px_grad.shape)}, expected [B, S, T+1] or [B, S, T]"
        )
    B, S, T1 = px_grad.shape
    if py_grad.ndim != 3 or py_grad.shape[:2] != (B, S + 1) or T1 - py_grad.shape[2] not in (0, 1):
        raise ValueError(
            f"py_grad: got shape {tuple(py_grad.shape)}, expected [B, S+1, T] = [{B}, {S + 1}, "
            f"{T1 - 1} or {T1}] for px_grad of shape {tuple(px_grad.shape)}"
        )
    T = py_grad.shape[2]
    is_regular = T1 != T
    check_boundary_form(boundary, B, px_grad.device)
    s_range = _workable_s_range(s_range, boundary, S, T, is_regular)

    starts = S + 2 - s_range
    # Reduced over dim 2 in this layout, the sums are bit for bit those of k2, and so the argmax.
    windows = py_grad.unfold(1, s_range, 1).transpose(2, 3)  # [B, starts, s_range, T]
    kept = windows.sum(dim=2)  # [B, starts, T]
    kept[:, 1:] -= px_grad[:, : starts - 1, :T]
    first = kept.argmax(dim=1)  # [B, T]

    # From the last frame on the band must reach the last symbol.
    frame = torch.arange(T, device=px_grad.device)
    last_first = (boundary[:, 2:3] - s_range + 1).clamp(min=0)
    first = torch.where(frame < boundary[:, 3:4] - 1, first, last_first)
    first = _climbing(first, s_range - 1 if is_regular else 1)
    return first.unsqueeze(2) + torch.arange(s_range, device=px_grad.device)


@opaque
def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """The joiner inputs of the retained sites, as ``k2.do_rnnt_pruning``.

    Args:
      am: ``[B, T, H_am]`` encoder projections.
      lm: ``[B, S+1, H_lm]`` predictor projections.
      ranges: int64 ``[B, T, s_range]`` states in ``[0, S]``.

    Returns:
      ``(am_pruned, lm_pruned)``: ``[B, T, s_range, H_am]``, a view of ``am``, and
      ``[B, T, s_range, H_lm]``. The gradient of ``lm`` is accumulated at ``[B, S+1, H_lm]``.

    Raises:
      ValueError: if a shape does not fit or a state lies outside ``[0, S]``.
      TypeError: if the ranges are not int64.
    """
    check_pruning_form(am, lm, ranges)
    B, T, s_range = ranges.shape
    S1 = lm.shape[1]
    outside = (ranges < 0) | (ranges >= S1)
    if bool(outside.any()):
        b, t, r = outside.nonzero()[0].tolist()
        raise ValueError(
            f"ranges: got state {int(ranges[b, t, r])} for utterance b={b} at t={t}, expected "
            f"0..S={S1 - 1} for lm of shape {tuple(lm.shape)}"
        )
    am_pruned = am.unsqueeze(2).expand(-1, -1, s_range, -1)
    rows = ranges + S1 * torch.arange(B, device=ranges.device).reshape(B, 1, 1)
    lm_pruned = lm.reshape(B * S1, -1).index_select(0, rows.reshape(-1))
    return am_pruned, lm_pruned.reshape(B, T, s_range, lm.shape[2])


def check_pruning_form(am: Tensor, lm: Tensor, ranges: Tensor) -> None:
    """Refuse inputs of ``do_rnnt_pruning`` that do not fit together; looks at no values.

    Raises:
      ValueError: a shape.
      TypeError: the ranges are no tensor, or not int64.
    """
    if not isinstance(ranges, Tensor):
        raise TypeError(
            f"ranges: got {type(ranges).__name__}, expected an int64 tensor [B, T, s_range]"
        )
    if ranges.ndim != 3:
        raise ValueError(f"ranges: got shape {tuple(ranges.shape)}, expected [B, T, s_range]")
    B, T, _ = ranges.shape
    if am.ndim != 3 or am.shape[:2] != (B, T):
        raise ValueError(
            f"am: got shape {tuple(am.shape)}, expected [B, T, H] = [{B}, {T}, H] for ranges "
            f"of shape {tuple(ranges.shape)}"
        )
    if lm.ndim != 3 or lm.shape[0] != B:
        raise ValueError(f"lm: got shape {tuple(lm.shape)}, expected [B, S+1, H] = [{B}, S+1, H]")
    if ranges.dtype != torch.int64:
        raise TypeError(f"ranges: got {ranges.dtype}, expected torch.int64; call ranges.long()")


def _workable_s_range(s_range: int, boundary: Tensor, S: int, T: int, is_regular: bool) -> int:
    """``s_range`` raised to what the longest transcript needs and cut to ``S + 1``."""
    least = 2 if is_regular else 1
    if s_range < least:
        raise ValueError(
            f"s_range: got {s_range}, expected at least {least} in the "
            f"{'regular' if is_regular else 'modified'} lattice, as no path survives below"
        )
    rows = boundary_on_host(boundary, S, T)
    for b, row in enumerate(rows):
        if not is_regular and row[2] > row[3]:
            raise ValueError(
                f"boundary: got {list(row)} for utterance b={b} in the modified lattice, "
                "expected t_end >= s_end as each symbol takes a frame; drop the utterances that "
                "are too short"
            )
    # The band climbs by s_range - 1 per frame at most: (s_range - 1) * t_end >= s_end.
    needed = max(((s_end - 1) // max(t_end, 1) + 2 for _, _, s_end, t_end in rows), default=0)
    if is_regular and s_range < needed:
        logger.warning(
            "s_range: got %d, which cannot reach the last symbol of every utterance; using %d",
            s_range,
            needed,
        )
        s_range = needed
    if s_range > S + 1:
        logger.debug("s_range: got %d for S=%d; using all %d states", s_range, S, S + 1)
    return min(s_range, S + 1)


def _climbing(first: Tensor, steepest: int) -> Tensor:
    """Change the starts ``[B, T]`` to begin at 0, never fall, and rise by at most ``steepest``.

    A start above a later one falls to it; then early starts are raised, as far as the first frame
    allows, to where the later ones can be reached. A rise is at most ``steepest`` exactly where
    ``steepest * t - first`` never falls, so a running minimum from the right does both.
    """
    slope = steepest * torch.arange(first.shape[1], device=first.device)
    first = _minimum_from_right(first)
    return slope - _minimum_from_right(slope - first).clamp(min=0)


def _minimum_from_right(values: Tensor) -> Tensor:
    return values.flip(1).cummin(dim=1).values.flip(1)
