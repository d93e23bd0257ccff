"""What routing did so far: the mutable totals, and the frozen picture of them users get."""

from __future__ import annotations

from dataclasses import dataclass, field

from panda_icefall.normalizer import TileCounters


@dataclass(frozen=True)
class Status:
    """Totals since ``apply``.

    Attributes:
      replaced: full names of the functions replaced now.
      losses_routed: pruned losses through the selected normaliser.
      losses_dense: pruned losses computed from ordinary logits while applied.
      materialised: operation -> how often it turned a deferred tensor into an ordinary one.
      sites, sites_evaluated, sites_backward: retained sites; those evaluated forward; those whose
        backward was computed.
      tiles_forward, tiles_backward: tiles computed.
      adjoint_mass, adjoint_mass_skipped: summed absolute adjoints, and what backward left out.
      forward_seconds, backward_seconds: time inside the selected normaliser.
    """

    replaced: tuple[str, ...]
    losses_routed: int
    losses_dense: int
    materialised: dict[str, int]
    sites: int
    sites_evaluated: int
    sites_backward: int
    tiles_forward: int
    tiles_backward: int
    adjoint_mass: float
    adjoint_mass_skipped: float
    forward_seconds: float
    backward_seconds: float


@dataclass
class RoutingCounters:
    """The totals while they grow."""

    losses_routed: int = 0
    losses_dense: int = 0
    materialised: dict[str, int] = field(default_factory=dict)
    tiles: TileCounters = field(default_factory=TileCounters)

    def snapshot(self, replaced: tuple[str, ...]) -> Status:
        tiles = self.tiles
        return Status(
            replaced=replaced,
            losses_routed=self.losses_routed,
            losses_dense=self.losses_dense,
            materialised=dict(self.materialised),
            sites=tiles.sites,
            sites_evaluated=tiles.sites_evaluated,
            sites_backward=tiles.sites_backward,
            tiles_forward=tiles.tiles_forward,
            tiles_backward=tiles.tiles_backward,
            adjoint_mass=tiles.adjoint_mass,
            adjoint_mass_skipped=tiles.adjoint_mass_skipped,
            forward_seconds=tiles.seconds("forward"),
            backward_seconds=tiles.seconds("backward"),
        )
