"""Running sums of losses over frames, printed the way icefall prints them."""

from __future__ import annotations

import torch
import torch.distributed as dist


class MetricsTracker(dict[str, float]):
    """Sums by name; `frames` is the denominator of all others."""

    def __add__(self, other: MetricsTracker) -> MetricsTracker:
        """The sums of both."""
        names = [*self, *(name for name in other if name not in self)]
        return MetricsTracker({n: self.get(n, 0.0) + other.get(n, 0.0) for n in names})

    def __mul__(self, alpha: float) -> MetricsTracker:
        """All sums, the frames too, times `alpha`: an exponential window over past batches."""
        return MetricsTracker({name: value * alpha for name, value in self.items()})

    def per_frame(self) -> dict[str, float]:
        """Every sum but `frames`, divided by the frames."""
        return {n: v / self["frames"] for n, v in self.items() if n != "frames"}

    def __str__(self) -> str:
        means = ", ".join(f"{name}={value:.4g}" for name, value in self.per_frame().items())
        return f"{means}, over {self['frames']:.2f} frames."

    def reduce(self, device: torch.device) -> None:
        """Add up over all ranks, in place. Every rank must call it with the same names."""
        sums = torch.tensor(list(self.values()), dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        self.update(zip(list(self), sums.tolist()))
