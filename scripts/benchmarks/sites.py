"""The retained sites of a lattice as rows: what the baselines compute log-probs of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.losses.sites import inside_boundary, next_symbols


@dataclass(frozen=True)
class SiteInputs:
    """Joiner inputs, head and selected ids of all sites, in (b, t, s) order.

    Attributes:
      am, lm: ``[B, T, H]`` and ``[B, S+1, H]``, projected.
      weight, bias: ``[C, H]`` and ``[C]``.
      ids: int64 ``[N, 2]``, next symbol and blank.
      am_rows, lm_rows: int64 ``[N]``, rows of the flattened am and lm that each site reads.
      live: int64 ``[n]``, the sites inside the boundary.
      grid: ``(B, T, s_range)``.
    """

    am: Tensor
    lm: Tensor
    weight: Tensor
    bias: Tensor
    ids: Tensor
    am_rows: Tensor
    lm_rows: Tensor
    live: Tensor
    grid: tuple[int, int, int]

    @classmethod
    def make(
        cls,
        am: Tensor,
        lm: Tensor,
        weight: Tensor,
        bias: Tensor,
        symbols: Tensor,
        ranges: Tensor,
        boundary: Tensor,
        blank: int,
    ) -> SiteInputs:
        """The sites of a band ``ranges`` ``[B, T, s_range]``; the other arguments as in k2."""
        B, T, s_range = ranges.shape
        targets = next_symbols(symbols, ranges, blank).reshape(-1)
        frames = torch.arange(B * T, device=ranges.device).repeat_interleave(s_range)
        first_state = lm.shape[1] * torch.arange(B, device=ranges.device).reshape(B, 1, 1)
        return cls(
            am=am,
            lm=lm,
            weight=weight,
            bias=bias,
            ids=torch.stack((targets, torch.full_like(targets, blank)), dim=1),
            am_rows=frames,
            lm_rows=(ranges + first_state).reshape(-1),
            live=inside_boundary(ranges, boundary).reshape(-1).nonzero().squeeze(1),
            grid=(B, T, s_range),
        )

    def hidden(self, rows: Tensor | None = None) -> Tensor:
        """``tanh(am + lm)`` of the given sites, or of all: ``[n, H]``."""
        am_rows = self.am_rows if rows is None else self.am_rows[rows]
        lm_rows = self.lm_rows if rows is None else self.lm_rows[rows]
        am = self.am.flatten(0, 1).index_select(0, am_rows)
        return torch.tanh(am + self.lm.flatten(0, 1).index_select(0, lm_rows))

    def on_grid(self, selected_logp: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, 2]`` as ``(target, blank)`` of ``[B, T, s_range]``."""
        target, blank = selected_logp.unbind(dim=1)
        return target.reshape(self.grid), blank.reshape(self.grid)
