"""What a distance between arms is held against: the configured bound, or what rounding does."""

import math
from dataclasses import dataclass

from panda_icefall.runs.contract.result import TWIN_FACTOR

__all__ = ["Leeway"]

_TELLING = 0.1  # a bound above this says nothing


@dataclass(frozen=True)
class Leeway:
    """What a distance from the dense run is held against.

    Attributes:
      configured: The configured bound.
      twin: The dense twin's distance; None where there is none (yet).
      twin_name: What the twin is, in words.
    """

    configured: float
    twin: float | None
    twin_name: str = "dense twin"

    @property
    def bound(self) -> float:
        """The larger of the configured bound and a few times the twin's distance."""
        # A twin that itself went wrong excuses nothing.
        if self.twin is None or not math.isfinite(self.twin):
            return self.configured
        return max(self.configured, TWIN_FACTOR * self.twin)

    def holds(self, distance: float) -> bool | None:
        """Whether ``distance`` is within the bound; None where the bound says nothing."""
        if distance <= self.configured:
            return True
        if self.twin is None and math.isfinite(distance):
            return None
        if not distance <= self.bound:
            return False
        return True if self.bound <= _TELLING else None

    def __str__(self) -> str:
        if self.twin is None:
            return f"configured {self.configured:g}; no {self.twin_name} yet"
        if self.bound == self.configured:
            return f"allowed {self.configured:g} as configured; {self.twin_name} at {self.twin:.1e}"
        return (
            f"allowed {self.bound:.1e} = {TWIN_FACTOR:g} x {self.twin:.1e} ({self.twin_name}), "
            f"configured {self.configured:g}"
        )
