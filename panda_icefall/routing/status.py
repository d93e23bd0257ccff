"""What routing did so far: the mutable totals, and the frozen picture of them users get."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from panda_icefall.normalizer import TileCounters


@dataclass(frozen=True)
class LossTotals:
    """What routed losses added up to over some stretch of a run; totals add and subtract.

    Attributes:
      losses_routed: pruned losses through the selected normaliser.
      losses_dense: pruned losses computed from ordinary logits while applied.
      materialised: operation -> how often it turned a deferred tensor into an ordinary one.
      sites, sites_evaluated, sites_backward: retained sites; those evaluated forward; those whose
        backward was computed. A HAT loss counts each of its sites twice, for its two heads.
      tiles_forward, tiles_backward: tiles computed.
      adjoint_mass, adjoint_mass_skipped: summed absolute adjoints, and what backward left out.
      forward_seconds, backward_seconds: time inside the selected normaliser.
    """

    losses_routed: int = 0
    losses_dense: int = 0
    materialised: dict[str, int] = field(default_factory=dict)
    sites: int = 0
    sites_evaluated: int = 0
    sites_backward: int = 0
    tiles_forward: int = 0
    tiles_backward: int = 0
    adjoint_mass: float = 0.0
    adjoint_mass_skipped: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0

    def __add__(self, other: LossTotals) -> LossTotals:
        return self._combine(other, 1)

    def __sub__(self, other: LossTotals) -> LossTotals:
        return self._combine(other, -1)

    def _combine(self, other: LossTotals, sign: int) -> LossTotals:
        values: dict[str, Any] = {}
        for f in dataclasses.fields(LossTotals):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if f.name == "materialised":
                counts = {
                    n: mine.get(n, 0) + sign * theirs.get(n, 0) for n in sorted({*mine, *theirs})
                }
                values[f.name] = {name: count for name, count in counts.items() if count}
            else:
                values[f.name] = mine + sign * theirs
        return LossTotals(**values)


@dataclass(frozen=True)
class Status(LossTotals):
    """Totals since ``apply``, and what is replaced.

    Attributes:
      replaced: full names of the functions replaced now.
    """

    replaced: tuple[str, ...] = ()


@dataclass
class RoutingCounters:
    """The totals while they grow."""

    losses_routed: int = 0
    losses_dense: int = 0
    materialised: dict[str, int] = field(default_factory=dict)
    tiles: TileCounters = field(default_factory=TileCounters)

    def snapshot(self, replaced: tuple[str, ...]) -> Status:
        tiles = self.tiles
        counted = {f.name: getattr(tiles, f.name) for f in dataclasses.fields(tiles) if f.init}
        return Status(
            replaced=replaced,
            losses_routed=self.losses_routed,
            losses_dense=self.losses_dense,
            materialised=dict(self.materialised),
            forward_seconds=tiles.seconds("forward"),
            backward_seconds=tiles.seconds("backward"),
            **counted,
        )
