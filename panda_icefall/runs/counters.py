"""Differences of routing's cumulative counters, over phases, steps and whole runs."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from panda_icefall import routing

__all__ = ["CounterLedger", "LossCounters"]


@dataclass(frozen=True)
class LossCounters:
    """What routing counted over some stretch of a run; the fields are those of its ``Status``.

    Attributes:
      losses_routed: Pruned losses computed through the selected normaliser.
      losses_dense: Calls of the pruned loss with ordinary logits.
      materialised: Operation name to how often it turned a deferred joiner into a tensor.
      sites: Lattice sites inside ``ranges``.
      sites_evaluated: Sites whose normaliser was computed.
      sites_backward: Sites that backward recomputed.
      tiles_forward: Tiles of the forward passes.
      tiles_backward: Tiles of the backward passes.
      adjoint_mass: Total absolute adjoint.
      adjoint_mass_skipped: The part of it that backward left out.
      forward_seconds: Time inside the routed loss, forward.
      backward_seconds: Time inside the routed loss, backward.
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

    @classmethod
    def now(cls) -> "LossCounters":
        """Routing's counters as they stand."""
        status = routing.status()
        values = {f.name: getattr(status, f.name) for f in dataclasses.fields(cls)}
        values["materialised"] = dict(values["materialised"])
        return cls(**values)

    def __add__(self, other: "LossCounters") -> "LossCounters":
        return self._combine(other, 1)

    def __sub__(self, other: "LossCounters") -> "LossCounters":
        return self._combine(other, -1)

    def _combine(self, other: "LossCounters", sign: int) -> "LossCounters":
        values: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if f.name == "materialised":
                names = sorted({*mine, *theirs})
                total = {n: mine.get(n, 0) + sign * theirs.get(n, 0) for n in names}
                values[f.name] = dict(+Counter(total))
            else:
                values[f.name] = mine + sign * theirs
        return LossCounters(**values)

    def as_row(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dataclasses.asdict(self)


class CounterLedger:
    """Sums what routing counts for the recipe itself, leaving out what a check counts.

    Routing's counters start again at every ``apply()``, which the contract check calls; the
    ledger therefore adds up differences between marks and forgets those of excluded stretches.
    """

    def __init__(self) -> None:
        self.total = LossCounters()
        self._mark = LossCounters.now()

    def advance(self) -> LossCounters:
        """Book what was counted since the last mark, and return it."""
        now = LossCounters.now()
        delta, self._mark = now - self._mark, now
        self.total = self.total + delta
        return delta

    def exclude(self) -> None:
        """Forget what was counted since the last mark."""
        self._mark = LossCounters.now()
