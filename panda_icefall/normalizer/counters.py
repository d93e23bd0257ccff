"""What the tiled op did: counts, adjoint mass and seconds, added up over calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class TileCounters:
    """Mutable totals; one object may serve many calls.

    Attributes:
      sites, sites_evaluated, sites_backward: sites offered, evaluated forward (inside the
        boundary) and evaluated backward (adjoint not left out).
      tiles_forward, tiles_backward: tiles computed.
      adjoint_mass, adjoint_mass_skipped: summed absolute adjoints, and the part of it that
        ``adjoint_tolerance`` left out.
    """

    sites: int = 0
    sites_evaluated: int = 0
    sites_backward: int = 0
    tiles_forward: int = 0
    tiles_backward: int = 0
    adjoint_mass: float = 0.0
    adjoint_mass_skipped: float = 0.0
    _seconds: dict[str, float] = field(default_factory=dict, init=False)
    _cuda_events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(
        default_factory=list, init=False
    )

    @contextmanager
    def timed(self, phase: str, device: torch.device) -> Iterator[None]:
        """Add the time of the enclosed work to ``phase``; on CUDA by events, without a sync."""
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._cuda_events.append((phase, begin, end))
            self._drain(wait=False)
        else:
            start = time.perf_counter()
            try:
                yield
            finally:
                self._add(phase, time.perf_counter() - start)

    def seconds(self, phase: str) -> float:
        """Seconds spent in ``phase`` ("forward" or "backward"); waits for pending CUDA work."""
        self._drain(wait=True)
        return self._seconds.get(phase, 0.0)

    def _drain(self, wait: bool) -> None:
        """Add the time of the events that are done (with ``wait``: of all), and forget them."""
        while self._cuda_events:
            phase, begin, end = self._cuda_events[0]
            if not wait and not end.query():
                return
            end.synchronize()
            self._add(phase, begin.elapsed_time(end) / 1000)
            del self._cuda_events[0]

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
