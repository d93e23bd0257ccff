"""Which sites a recorded joiner has one row for, and which rows of am and lm they read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class JointSites(ABC):
    """The sites of one joint, in an order of their own.

    Attributes:
      shape: sizes of the dimensions that the joint has before X.
      device: of am and lm.
    """

    device: torch.device

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @abstractmethod
    def index(self, values: Tensor, by_symbol: bool) -> Tensor:
        """The row of am, or with ``by_symbol`` of lm, that each site reads: int64 ``[N]``.

        Args:
          values: am or lm; their rows are numbered over all dimensions but the last.
        """

    def at_sites(self, values: Tensor, by_symbol: bool) -> Tensor:
        """am or lm as the ordinary tensor ``[*shape, X]``, a view where torch makes one."""
        rows = values.reshape(-1, values.shape[-1]).index_select(0, self.index(values, by_symbol))
        return rows.view(*self.shape, values.shape[-1])


@dataclass(frozen=True, eq=False)
class RangesSites(JointSites):
    """The retained sites of a ``do_rnnt_pruning`` call: ``ranges`` ``[B, T, s_range]`` int64."""

    ranges: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.ranges.shape)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.ranges.device

    def index(self, values: Tensor, by_symbol: bool) -> Tensor:
        B, T, s_range = self.ranges.shape
        b = torch.arange(B, device=self.device)[:, None, None]
        if by_symbol:
            rows = values.shape[1]
            # Flat row numbers would reach into the next utterance: -1 is refused where it is read.
            inside = (self.ranges >= 0) & (self.ranges < rows)
            index = torch.where(inside, b * rows + self.ranges, torch.full_like(self.ranges, -1))
        else:
            t = torch.arange(T, device=self.device)[None, :, None]
            index = (b * T + t).expand(B, T, s_range)
        return index.reshape(-1)

    def at_sites(self, values: Tensor, by_symbol: bool) -> Tensor:
        if by_symbol:
            return super().at_sites(values, by_symbol)
        return values.unsqueeze(2).expand(*self.shape, values.shape[-1])


@dataclass(frozen=True, eq=False)
class GridSites(JointSites):
    """All sites of a full lattice: am ``[B, T, X]`` against lm ``[B, S + 1, X]``.

    Attributes:
      B: None: those of one utterance, whose tensors have no such dimension.
      states: S + 1.
    """

    B: int | None
    T: int
    states: int
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        lattice = (self.T, self.states)
        return lattice if self.B is None else (self.B, *lattice)

    def index(self, values: Tensor, by_symbol: bool) -> Tensor:
        rows = torch.arange(values.shape[:-1].numel(), device=self.device)
        rows = rows.view(values.shape[:-1]).unsqueeze(self.other_axis(by_symbol))
        return rows.expand(self.shape).reshape(-1)

    def at_sites(self, values: Tensor, by_symbol: bool) -> Tensor:
        axis = self.other_axis(by_symbol)
        return values.unsqueeze(axis).expand(*self.shape, values.shape[-1])

    def other_axis(self, by_symbol: bool) -> int:
        """The dimension of the sites that am, or with ``by_symbol`` lm, does not have."""
        return len(self.shape) - (2 if by_symbol else 1)


@dataclass(frozen=True, eq=False)
class PackedSites(JointSites):
    """The sites of several lattices one after the other, as optimized_transducer packs them.

    Attributes:
      frames, states: of each of them; am is ``[sum of frames, X]`` and lm ``[sum of states, X]``.
    """

    frames: Sequence[int]
    states: Sequence[int]
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(t * s for t, s in zip(self.frames, self.states)),)

    def index(self, values: Tensor, by_symbol: bool) -> Tensor:
        parts, first = [], 0
        for t, s in zip(self.frames, self.states):
            count = s if by_symbol else t
            rows = torch.arange(first, first + count, device=self.device)
            parts.append(rows.unsqueeze(0 if by_symbol else 1).expand(t, s).reshape(-1))
            first += count
        return torch.cat(parts)
