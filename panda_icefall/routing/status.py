"""What routing did so far: the mutable totals, and the frozen picture of them users get."""

from __future__ import annotations

import dataclasses
import logging
import threading
from dataclasses import dataclass, field
from typing import Any

from panda_icefall.normalizer import TileCounters, TileTotals


@dataclass(frozen=True)
class LossCounts:
    """How often losses were computed in which way.

    Attributes:
      losses_routed: pruned and full-lattice losses through the selected normaliser.
      losses_by_calls: losses of ``transducer_loss`` and its sibling whose joiner was called for
        some sites at a time.
      losses_dense: pruned and full-lattice losses of ordinary logits while applied.
      simple_losses_routed: simple and smoothed losses in tiles, without further tensors of the size
        of am and lm than their gradients.
      simple_losses_of_tensors: those of them that were given both am and lm as ordinary tensors.
      simple_losses_dense: simple and smoothed losses left to k2 while applied.
      ctc_losses_routed, ctc_losses_dense: CTC losses of a head's own labels, and those left to
        torch, while asked for.
      materialised: operation -> how often it turned a deferred tensor into an ordinary one.
    """

    losses_routed: int = 0
    losses_by_calls: int = 0
    losses_dense: int = 0
    simple_losses_routed: int = 0
    simple_losses_of_tensors: int = 0
    simple_losses_dense: int = 0
    ctc_losses_routed: int = 0
    ctc_losses_dense: int = 0
    materialised: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LossTotals(TileTotals, LossCounts):  # the later base's fields come first
    """What routed losses added up to over some stretch of a run; totals add and subtract.

    The fields of :class:`TileTotals` are of the transducer losses, pruned and full. HAT and TDT
    losses count each of their sites twice, for their two heads.

    Attributes:
      simple_forward_seconds, simple_backward_seconds: time inside the routed simple losses' tiles.
      ctc_adjoint_mass, ctc_adjoint_mass_skipped: as ``adjoint_mass``, of routed CTC losses.
    """

    simple_forward_seconds: float = 0.0
    simple_backward_seconds: float = 0.0
    ctc_adjoint_mass: float = 0.0
    ctc_adjoint_mass_skipped: float = 0.0

    @property
    def simple_losses_deferred(self) -> int:
        """Simple losses that read what goes into the projections, or into one of the two."""
        return self.simple_losses_routed - self.simple_losses_of_tensors

    def __add__(self, other: LossTotals) -> LossTotals:
        return self._combine(other, 1)

    def __sub__(self, other: LossTotals) -> LossTotals:
        return self._combine(other, -1)

    def _combine(self, other: LossTotals, sign: int) -> LossTotals:
        values: dict[str, Any] = {}
        for f in dataclasses.fields(LossTotals):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if f.name == "materialised":
                # In the order of their first time: the first is often the cause of the others.
                names = {**mine, **theirs}
                counts = {n: mine.get(n, 0) + sign * theirs.get(n, 0) for n in names}
                values[f.name] = {name: count for name, count in counts.items() if count}
            else:
                values[f.name] = mine + sign * theirs
        return LossTotals(**values)


@dataclass(frozen=True)
class Status(LossTotals):
    """Totals since ``apply``, and what is replaced.

    Attributes:
      replaced: full names of the functions replaced now.
      non_finite: what was wrong with the first routed loss that was not finite, one sentence for
        each of its utterances. On other devices than a CPU it is looked into while its backward has
        not begun, or in a run of the launcher.
    """

    replaced: tuple[str, ...] = ()
    non_finite: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What is not zero, one line each; ``repr`` has all of it."""
        counts = (getattr(self, f.name) for f in dataclasses.fields(LossCounts))
        lines = [] if any(counts) else ["no loss was computed while applied"]
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, dict):
                value = ", ".join(f"{name} {count}" for name, count in value.items())
            elif isinstance(value, tuple):
                value = ", ".join(value)
            elif value:
                value = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
            if value:
                lines.append(f"{f.name}: {value}")
        return "\n".join(lines)


@dataclass
class RoutingCounters:
    """The totals while they grow.

    Attributes:
      totals: all but what the tiles count.
      tiles, simple_tiles, ctc_tiles: of the routed transducer losses, of the simple ones, and of
        CTC heads.
    """

    totals: LossTotals = field(default_factory=LossTotals)
    tiles: TileCounters = field(default_factory=TileCounters)
    simple_tiles: TileCounters = field(default_factory=TileCounters)
    ctc_tiles: TileCounters = field(default_factory=TileCounters)
    # Replicas of nn.DataParallel count from threads of their own.
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def reset(self) -> None:
        """Begin again with zeros; what a backward counts later belongs to the old totals."""
        self.totals = LossTotals()
        self.tiles, self.simple_tiles, self.ctc_tiles = (TileCounters() for _ in range(3))

    def add(self, counted: LossTotals) -> None:
        with self._lock:
            self.totals += counted

    def count_joint(self, operation: str) -> None:
        """A recorded joiner was turned into a tensor; said once per operation."""
        self._count_materialised(
            operation,
            f"{operation}: the joiner's tensor up to here, [B, T, s_range, X] or [B, T, S + 1, X], "
            "is computed as without PANDA (same result, ordinary memory for its X columns)",
        )

    def count_calls(self, operation: str) -> None:
        """A joiner of ``transducer_loss`` could not be recorded; said once per operation."""
        self._count_materialised(
            operation,
            f"{operation}: the joiner cannot be recorded and is called for some sites at a time "
            "(exact; its logits exist for these sites only)",
        )
        self.add(LossTotals(losses_by_calls=1))

    def count_whole_lattice(self, operation: str) -> None:
        """A joiner of ``transducer_loss`` was given all of its lattice; said once per operation."""
        self._count_materialised(
            operation,
            f"{operation}: so the joiner is neither recorded nor called for some sites at a time, "
            "and the loss is computed from the logits of all sites (same result, ordinary memory)",
        )
        self.add(LossTotals(losses_dense=1))

    def count_projection(self, operation: str) -> None:
        """A projection gave a tensor; ``operation`` begins with the projection's name."""
        self._count_materialised(
            operation,
            f"{operation} needs the projection's tensor, of C classes, which is computed as "
            "without PANDA (same result, ordinary memory)",
        )

    def _count_materialised(self, operation: str, what_happens: str) -> None:
        with self._lock:
            is_first = operation not in self.totals.materialised
            self.totals += LossTotals(materialised={operation: 1})
        if is_first:
            logging.warning("panda: %s; said once", what_happens)

    def snapshot(self, replaced: tuple[str, ...], non_finite: tuple[str, ...] = ()) -> Status:
        """The totals now.

        Args:
          replaced, non_finite: as of ``Status``.
        """
        simple, ctc = self.simple_tiles.totals, self.ctc_tiles.totals
        of_tiles = LossTotals(
            **vars(self.tiles.totals),
            ctc_adjoint_mass=ctc.adjoint_mass,
            ctc_adjoint_mass_skipped=ctc.adjoint_mass_skipped,
            simple_forward_seconds=simple.forward_seconds,
            simple_backward_seconds=simple.backward_seconds,
        )
        totals = vars(self.totals + of_tiles)
        return Status(**totals, replaced=replaced, non_finite=non_finite)
