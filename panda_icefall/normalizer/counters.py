"""What the tiled op did: counts, adjoint mass and seconds, added up over calls."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TileTotals:
    """What tiles added up to.

    Attributes:
      sites, sites_evaluated, sites_backward: sites offered, evaluated forward (inside the
        boundary) and evaluated backward (adjoint not left out).
      tiles_forward, tiles_backward: tiles computed.
      adjoint_mass, adjoint_mass_skipped: summed absolute adjoints, and the part of it that
        ``adjoint_tolerance`` left out.
      forward_seconds, backward_seconds: time inside the tiles.
      out_of_memory_retries: times that tiles did not fit and were made again, half as large.
    """

    sites: int = 0
    sites_evaluated: int = 0
    sites_backward: int = 0
    tiles_forward: int = 0
    tiles_backward: int = 0
    adjoint_mass: float = 0.0
    adjoint_mass_skipped: float = 0.0
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    out_of_memory_retries: int = 0


class TileCounters:
    """The totals while they grow; one object may serve many calls, from any thread."""

    def __init__(self) -> None:
        self._totals = TileTotals()
        self._lock = threading.Lock()
        self._cuda_events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._unread: dict[str, torch.Tensor] = {}

    @property
    def totals(self) -> TileTotals:
        """The totals so far; waits for pending CUDA work."""
        self._drain(wait=True)
        with self._lock:
            unread, self._unread = self._unread, {}
        self.add(**{name: more.item() for name, more in unread.items()})
        return self._totals

    def add(self, **counted: float) -> None:
        """Add to fields of the totals, by their names."""
        with self._lock:
            summed = {name: getattr(self._totals, name) + more for name, more in counted.items()}
            self._totals = dataclasses.replace(self._totals, **summed)

    def add_when_read(self, **counted: torch.Tensor) -> None:
        """Add numbers ``[]`` that are still on a device, which is waited for by ``totals`` only."""
        with self._lock:
            for name, more in counted.items():
                before = self._unread.get(name)
                self._unread[name] = more if before is None else before.to(more.device) + more

    @contextmanager
    def timed(self, phase: str, device: torch.device) -> Iterator[None]:
        """Add the time of the enclosed work to ``phase`` ("forward" or "backward").

        On CUDA it is measured by events, without a sync.
        """
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
                self._add_seconds(phase, time.perf_counter() - start)

    def _drain(self, wait: bool) -> None:
        """Add the time of the events that are done (with ``wait``: of all), and forget them."""
        while True:
            with self._lock:
                if not self._cuda_events or not (wait or self._cuda_events[0][2].query()):
                    return
                phase, begin, end = self._cuda_events.pop(0)
            end.synchronize()
            self._add_seconds(phase, begin.elapsed_time(end) / 1000)

    def _add_seconds(self, phase: str, seconds: float) -> None:
        self.add(**{f"{phase}_seconds": seconds})
