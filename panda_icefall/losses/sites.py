"""What a pruned loss reads at each retained site, and which sites it reads at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SiteLogProbs:
    """The log-probs of one pruned loss, ``[B, T, s_range]``; values mean nothing where not live.

    Attributes:
      target: log-prob of the next symbol, nats; of the blank where no symbol is left.
      blank: log-prob of the termination symbol, nats.
      log_z: the normaliser, nats; in the HAT loss that of the softmax over all but the blank.
      live: bool, sites inside the boundary of their utterance.
    """

    target: Tensor
    blank: Tensor
    log_z: Tensor
    live: Tensor


def next_symbols(symbols: Tensor, ranges: Tensor, termination_symbol: int) -> Tensor:
    """The class that each site's symbol arc emits, int64 ``[B, T, s_range]``.

    Args:
      symbols: int64 ``[B, S]``.
      ranges: int64 ``[B, T, s_range]`` states in ``[0, S]``.
      termination_symbol: taken at ``s == S``, where no symbol is left.
    """
    end = symbols.new_full((symbols.shape[0], 1), termination_symbol)
    return torch.cat((symbols, end), dim=1).gather(1, ranges.flatten(1)).reshape(ranges.shape)


def inside_boundary(ranges: Tensor, boundary: Tensor | None) -> Tensor:
    """Sites whose log-probs the recursion can read, bool ``[B, T, s_range]``; all without boundary.

    Args:
      ranges: int64 ``[B, T, s_range]``.
      boundary: int64 ``[B, 4]`` rows ``s_begin, t_begin, s_end, t_end``, or None.
    """
    if boundary is None:
        return torch.ones_like(ranges, dtype=torch.bool)
    s_begin, t_begin, s_end, t_end = boundary[:, :, None, None].unbind(dim=1)  # each [B, 1, 1]
    t = torch.arange(ranges.shape[1], device=ranges.device)[None, :, None]
    return (t >= t_begin) & (t < t_end) & (ranges >= s_begin) & (ranges <= s_end)
