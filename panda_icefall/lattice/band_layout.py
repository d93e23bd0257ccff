"""Where the arcs of a retained band are stored to advance the lattice front by front.

A front is the anti-diagonal ``d = s + t`` of the regular lattice and the frame ``d = t`` of the
modified and constrained ones. The states of one front that lie in the band and can be reached
are consecutive and at most ``s_range`` of them, so state ``s`` has column ``s % s_range`` on all
fronts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BandLayout:
    """Where the arcs of the sites are stored in the step buffer ``[D, B, 2, s_range]``.

    An arc is stored at the step it is taken in and at the column it leads to, symbol arcs in row 0,
    blank arcs in row 1. ``D`` is ``S + T`` in the regular lattice and ``T`` in the others.

    An utterance waits in its first state until its own first step and in its last state after its
    own last step, over blank arcs of log-prob 0. So every utterance starts at step 0 and ends at
    step D, and the loops need no case for ragged batches.

    Attributes:
      shape: ``(D, B, 2, s_range)``.
      symbol_index, blank_index: int64 ``[B, T, s_range]``, flat; arcs that do not exist have the
        index one past the end.
      waits: bool ``[D, B, s_range]``, the waiting blank arcs.
      first_column, last_column: int64 ``[B, 1]``, of the first and the last state.
      is_closed: bool ``[B, 1]``, the first state is not in the band: no path.
    """

    shape: tuple[int, int, int, int]
    symbol_index: Tensor
    blank_index: Tensor
    waits: Tensor
    first_column: Tensor
    last_column: Tensor
    is_closed: Tensor

    @staticmethod
    def of(ranges: Tensor, S: int, boundary: Tensor | None, is_regular: bool) -> BandLayout:
        """Find the arcs that exist, and their places, from the band and the boundary alone.

        Args:
          ranges: int64 ``[B, T, s_range]``; the first state of each frame is read.
          S: symbols in the padded batch.
          boundary: int64 ``[B, 4]`` rows ``s_begin, t_begin, s_end, t_end`` inside the lattice;
            ``[0, 0, S, T]`` if None.
          is_regular: a symbol arc stays on its frame; else it leads to the next one.
        """
        B, T, s_range = ranges.shape
        D = S + T if is_regular else T
        device = ranges.device
        if boundary is None:
            boundary = ranges.new_tensor([0, 0, S, T]).expand(B, 4)
        s_begin, t_begin, s_end, t_end = boundary.unsqueeze(2).unbind(1)  # [B, 1]
        low, high = _reachable(ranges[:, :, 0], s_range, boundary)

        column = torch.arange(s_range, device=device)
        s = ranges[:, :, :1] + column  # [B, T, s_range]

        def counts(s: Tensor, first_frame: int) -> Tensor:
            frames = slice(first_frame, first_frame + T)
            return (low[:, frames] <= s) & (s <= high[:, frames])

        has_symbol = counts(s, 0) & counts(s + 1, 0 if is_regular else 1)
        has_blank = counts(s, 0) & counts(s, 1)

        step = torch.arange(T, device=device)[:, None]
        step = s + step if is_regular else step
        utterance = torch.arange(B, device=device)[:, None, None]
        place = (step * B + utterance) * (2 * s_range)
        no_arc = D * B * 2 * s_range
        symbol_index = torch.where(has_symbol, place + (s + 1) % s_range, no_arc)
        blank_index = torch.where(has_blank, place + s_range + s % s_range, no_arc)

        first = s_begin + t_begin if is_regular else t_begin
        last = s_end + t_end if is_regular else t_end
        steps = torch.arange(D, device=device)[:, None, None]
        waits = (steps < first) & (column == s_begin % s_range)
        waits |= (steps >= last) & (column == s_end % s_range)
        return BandLayout(
            (D, B, 2, s_range), symbol_index, blank_index, waits,
            s_begin % s_range, s_end % s_range, low[:, :, 0].gather(1, t_begin) > s_begin,
        )  # fmt: skip

    def by_step(self, symbol_logp: Tensor, blank_logp: Tensor) -> Tensor:
        """The arcs ``[B, T, s_range]`` in step order, float64, with the waiting ones and -inf.

        Returns:
          ``[D * B * 2 * s_range + 1]``; the last place is that of the arcs that do not exist.
        """
        D, B, _, s_range = self.shape
        steps = symbol_logp.new_full((D * B * 2 * s_range + 1,), float("-inf"), dtype=torch.float64)
        steps[self.symbol_index] = symbol_logp.to(steps.dtype)
        steps[self.blank_index] = blank_logp.to(steps.dtype)
        steps[:-1].view(self.shape)[:, :, 1].masked_fill_(self.waits, 0)
        return steps

    def by_site(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Symbol and blank arcs ``[B, T, s_range]`` out of step order, 0 where there is none."""
        steps[-1:].zero_()
        return steps[self.symbol_index], steps[self.blank_index]


def _reachable(start: Tensor, s_range: int, boundary: Tensor) -> tuple[Tensor, Tensor]:
    """First and last state of each frame ``0..T`` that counts, ``[B, T+1, 1]``; none: high -1.

    Those are the states of the band and the boundary, and at ``t_end`` the last one only. No arc
    leads down, so states below a ``start`` of an earlier frame cannot be reached; without them the
    first state never falls, which is what keeps a front within ``s_range`` states.
    """
    s_begin, t_begin, s_end, t_end = boundary.unsqueeze(2).unbind(1)  # [B, 1]
    t = torch.arange(start.shape[1] + 1, device=start.device)
    start = torch.cat((start, s_end), dim=1)
    low = torch.maximum(start, s_begin).masked_fill(t < t_begin, 0).cummax(dim=1).values
    low = torch.where(t == t_end, s_end, low)
    high = torch.minimum(start + (s_range - 1), s_end)
    high = torch.where(t == t_end, s_end, high).masked_fill((t < t_begin) | (t > t_end), -1)
    return low.unsqueeze(2), high.unsqueeze(2)
