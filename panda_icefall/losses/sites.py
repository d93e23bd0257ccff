"""What a loss reads at each site, which sites it reads, and their places in the lattice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from panda_icefall.losses.host_values import Boundary
from panda_icefall.losses.lattice_checks import check_form, check_spec, check_values
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.normalizer import KnownSites


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
      evaluated: those of the sites that the loss can read.
    """

    spec: LatticeSpec
    T: int
    evaluated: KnownSites

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
    """The sites of a pruned lattice: those of its ``ranges``, padding included.

    Attributes:
      live: bool ``[B, T, s_range]``, sites inside the boundary; None: all of them.
    """

    spec: LatticeSpec
    T: int
    evaluated: KnownSites
    live: Tensor | None = None

    @classmethod
    def of(cls, spec: LatticeSpec, num_classes: int) -> RetainedSites:
        """The sites of a lattice, which is checked here, in one device sync.

        Raises:
          ValueError, TypeError: as ``check_spec``.
        """
        check_form(spec, num_classes)
        live = cls.live_sites(spec)
        known = check_values(spec, num_classes, counted=live, follows=True)
        return cls.of_checked(spec, live, known.count)

    @staticmethod
    def live_sites(spec: LatticeSpec) -> Tensor | None:
        """The ``live`` of a lattice whose form was checked."""
        return None if spec.boundary is None else inside_boundary(spec.band, spec.boundary)

    @classmethod
    def of_checked(cls, spec: LatticeSpec, live: Tensor | None, count: int) -> RetainedSites:
        """The sites of a lattice that was checked, ``count`` of which are ``live``."""
        evaluated = KnownSites() if live is None else KnownSites.of(live.reshape(-1), count)
        return cls(spec, spec.band.shape[1], evaluated, live)

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
        target, blank, log_z = (x.detach().view(shape) for x in (target, blank, log_z))
        return SiteLogProbs(target, blank, log_z, live)


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
    evaluated: KnownSites = field(default_factory=KnownSites)

    @classmethod
    def of(cls, spec: LatticeSpec, num_classes: int, T: int) -> FullSites:
        """The sites of a lattice, which is checked here, in one device sync.

        Raises:
          ValueError, TypeError: as ``check_spec``.
        """
        return cls.of_checked(spec, T, check_spec(spec, num_classes, T).boundary)

    @classmethod
    def of_checked(cls, spec: LatticeSpec, T: int, rows: Boundary) -> FullSites:
        """The sites of a lattice that was checked, whose boundary has these ``rows``."""
        B, S = spec.symbols.shape
        N = sum((t_end - t) * (s_end - s + 1) for s, t, s_end, t_end in rows)
        site = torch.arange(N, device=spec.symbols.device)
        if spec.boundary is None:
            return cls(spec, T, site)
        # From N, which the host knows: nonzero() of a mask would wait for the device once more.
        s_begin, t_begin, s_end, t_end = spec.boundary.unbind(dim=1)
        states = s_end - s_begin + 1  # [B]
        sites = (t_end - t_begin) * states
        utterance = torch.repeat_interleave(sites, output_size=N)  # [N]
        first = (torch.arange(B, device=site.device) * T + t_begin) * (S + 1) + s_begin
        # The site within its utterance, of which each frame skips S + 1 - states places.
        within = site - (sites.cumsum(dim=0) - sites).index_select(0, utterance)
        frame = torch.div(within, states.index_select(0, utterance), rounding_mode="floor")
        skipped = (S + 1 - states).index_select(0, utterance).mul_(frame)
        position = skipped.add_(within).add_(first.index_select(0, utterance))
        return cls(spec, T, position)

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
