"""What a loss reads at each site, which sites it reads, and their places in the lattice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.losses.spec import LatticeSpec, check_spec


@dataclass(frozen=True, eq=False)
class SiteLogProbs:
    """The log-probs of one loss, ``[B, T, s_range]``; values mean nothing where not live.

    Those of a full lattice are ``[B, T, S + 1]``.

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


class LatticeSites(ABC):
    """The N sites of one loss, in (b, t, s) order, of a lattice that was checked.

    Attributes:
      spec: the lattice.
      T: frames of the padded batch.
      live: bool ``[N]``, sites that the loss can read; None: all of them.
    """

    spec: LatticeSpec
    T: int
    live: Tensor | None

    @abstractmethod
    def next_symbols(self) -> Tensor:
        """The class that each site's symbol arc emits, int64 ``[N]``; at the last state any."""

    @abstractmethod
    def spread(self, values: Tensor, padding: float) -> Tensor:
        """``[N, ...]`` at their places, ``[B, T, S + 1, ...]``, with ``padding`` elsewhere."""

    @abstractmethod
    def utterance_sums(self, values: Tensor) -> Tensor:
        """The sums of ``[N]`` over the sites of each utterance, ``[B]``."""

    @abstractmethod
    def observed(self, target: Tensor, blank: Tensor, log_z: Tensor) -> SiteLogProbs:
        """What observers are told of the sites' log-probs ``[N]``."""


@dataclass(frozen=True, eq=False)
class RetainedSites(LatticeSites):
    """The sites of a pruned lattice: those of its ``ranges``, padding included."""

    spec: LatticeSpec
    T: int
    live: Tensor | None

    @classmethod
    def of(cls, spec: LatticeSpec, num_classes: int) -> RetainedSites:
        """The sites of a lattice, which is checked here.

        Raises:
          ValueError, TypeError: as ``check_spec``.
        """
        check_spec(spec, num_classes)
        live = None if spec.boundary is None else inside_boundary(spec.band, spec.boundary)
        return cls(spec, spec.band.shape[1], None if live is None else live.reshape(-1))

    def next_symbols(self) -> Tensor:
        spec = self.spec
        return next_symbols(spec.symbols, spec.band, spec.termination_symbol).reshape(-1)

    def spread(self, values: Tensor, padding: float) -> Tensor:
        ranges, S, more = self.spec.band, self.spec.symbols.shape[1], values.shape[1:]
        full = values.new_full((*ranges.shape[:2], S + 1, *more), padding)
        index = ranges[(...,) + (None,) * len(more)].expand(*ranges.shape, *more)
        return full.scatter(2, index, values.view(*ranges.shape, *more))

    def utterance_sums(self, values: Tensor) -> Tensor:
        return values.view(self.spec.band.shape[0], -1).sum(dim=1)

    def observed(self, target: Tensor, blank: Tensor, log_z: Tensor) -> SiteLogProbs:
        shape = self.spec.band.shape
        live = inside_boundary(self.spec.band, None) if self.live is None else self.live
        return SiteLogProbs(*(x.detach().view(shape) for x in (target, blank, log_z, live)))


@dataclass(frozen=True, eq=False)
class FullSites(LatticeSites):
    """The sites of a full lattice without its padding: ``sum_b T_b (S_b + 1)`` of them, packed.

    Attributes:
      position: int64 ``[N]``, each site's place among all ``[B, T, S + 1]``, ascending: utterance
        by utterance, frame by frame, state by state, as optimized_transducer packs them.
    """

    spec: LatticeSpec
    T: int
    position: Tensor
    live: Tensor | None = None

    @classmethod
    def of(cls, spec: LatticeSpec, num_classes: int, T: int) -> FullSites:
        """The sites of a lattice, which is checked here; one more device sync for their number.

        Raises:
          ValueError, TypeError: as ``check_spec``.
        """
        check_spec(spec, num_classes, T)
        B, S = spec.symbols.shape
        device = spec.symbols.device
        if spec.boundary is None:
            return cls(spec, T, torch.arange(B * T * (S + 1), device=device))
        states = torch.arange(S + 1, device=device).expand(B, T, S + 1)
        inside = inside_boundary(states, spec.boundary).flatten()
        return cls(spec, T, inside.nonzero().squeeze(1))

    @property
    def states(self) -> int:
        """S + 1."""
        return self.spec.symbols.shape[1] + 1

    def next_symbols(self) -> Tensor:
        symbols = self.spec.symbols
        end = symbols.new_full((symbols.shape[0], 1), self.spec.termination_symbol)
        padded = torch.cat((symbols, end), dim=1).flatten()
        state = self.position % self.states
        return padded.index_select(0, self._utterance() * self.states + state)

    def spread(self, values: Tensor, padding: float) -> Tensor:
        shape = (self.spec.symbols.shape[0], self.T, self.states)
        full = values.new_full((torch.Size(shape).numel(), *values.shape[1:]), padding)
        return full.index_copy(0, self.position, values).view(*shape, *values.shape[1:])

    def utterance_sums(self, values: Tensor) -> Tensor:
        sums = values.new_zeros(self.spec.symbols.shape[0])
        return sums.index_add(0, self._utterance(), values)

    def observed(self, target: Tensor, blank: Tensor, log_z: Tensor) -> SiteLogProbs:
        live = self.spread(torch.ones_like(self.position, dtype=torch.bool), False)
        target, blank, log_z = (self.spread(x.detach(), 0.0) for x in (target, blank, log_z))
        return SiteLogProbs(target, blank, log_z, live)

    def _utterance(self) -> Tensor:
        return torch.div(self.position, self.T * self.states, rounding_mode="floor")


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
