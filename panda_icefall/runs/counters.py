"""Routing's cumulative counters, booked over phases, steps and whole runs."""

from panda_icefall import routing
from panda_icefall.routing import LossTotals

__all__ = ["CounterLedger"]


class CounterLedger:
    """Sums what routing counts for the recipe itself, leaving out what a check counts.

    Routing's counters start again at every ``apply()``, which the contract check calls; the
    ledger therefore adds up differences between marks and forgets those of excluded stretches.
    """

    def __init__(self) -> None:
        self.total = LossTotals()
        self._mark: LossTotals = routing.status()

    def advance(self) -> LossTotals:
        """Book what was counted since the last mark, and return it."""
        now = routing.status()
        delta, self._mark = now - self._mark, now
        self.total = self.total + delta
        return delta

    def exclude(self) -> None:
        """Forget what was counted since the last mark."""
        self._mark = routing.status()
