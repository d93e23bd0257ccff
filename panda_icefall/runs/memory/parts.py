"""A phase of a training step cut into its parts: encoder, losses, backward, optimizer, the rest."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, Optional

from panda_icefall.runs.memory.probe import MemoryProbe, MemoryReading

__all__ = ["OTHER", "Part", "PartMeter"]

OTHER = "other"


@dataclass(frozen=True)
class Part:
    """All stretches of one phase that have the same name.

    Attributes:
      seconds: Their sum.
      stretches: How many there were.
      reading: The memory at the end of the last one, and the peak over all of them, in bytes.
      before_bytes: The memory at the beginning of the first one.
    """

    seconds: float
    stretches: int
    reading: MemoryReading
    before_bytes: int

    def __add__(self, other: "Part") -> "Part":
        """Both one after the other; ``other`` is the later one."""
        reading = dataclasses.replace(
            other.reading,
            peak_bytes=max(self.reading.peak_bytes, other.reading.peak_bytes),
            is_since_start=self.reading.is_since_start or other.reading.is_since_start,
        )
        stretches = self.stretches + other.stretches
        return Part(self.seconds + other.seconds, stretches, reading, self.before_bytes)

    def as_row(self) -> dict[str, Any]:
        """The part under the names that the memory log uses."""
        return {
            "seconds": self.seconds,
            "stretches": self.stretches,
            **self.reading.as_row(),
        }


class PartMeter:
    """Cuts the time between :meth:`start` and :meth:`finish` into named stretches without gaps.

    Between two boundaries everything belongs to one part: the outermost that was entered, else the
    one that is held open, else ``other``. The peak is reset at each boundary; on CUDA the device
    is synchronised there, so that work is counted where it was launched and a measured step takes
    longer than one that is not.

    Args:
      probe: Measures the device that trains.
    """

    def __init__(self, probe: MemoryProbe) -> None:
        self._probe = probe
        self._is_running = False
        self._parts: dict[str, Part] = {}
        self._entered: list[str] = []
        self._held: Optional[str] = None
        self._since = 0.0
        self._before_bytes = 0

    def start(self) -> None:
        """Begin a phase, in ``other``."""
        self._parts = {}
        self._entered = []
        self._held = None
        self._is_running = True
        self._probe.start()
        self._before_bytes = self._probe.read().current_bytes
        self._since = time.perf_counter()

    def enter(self, name: str) -> None:
        """Begin part ``name``; inside another part it belongs to that one."""
        if not self._is_running:
            return
        before = self._current
        self._entered.append(name)
        if self._held != name:
            self._held = None
        self._cut(before)

    def leave(self, name: str, *, is_held: bool = False) -> None:
        """End part ``name``, with whatever was entered inside it and not left.

        Args:
          name: As given to :meth:`enter`; without a matching call nothing happens.
          is_held: Keep the part open until it is left without this, or another one is entered.
        """
        if not self._is_running or name not in self._entered:
            return
        before = self._current
        while self._entered.pop() != name:
            pass
        self._held = name if is_held and not self._entered else None
        self._cut(before)

    def finish(self) -> tuple[Part, dict[str, Part]]:
        """End the phase: the whole of it, and its parts by name in the order of their first time.

        The seconds of the whole are the sum, and its peak the largest, of its parts.
        """
        assert self._is_running, "finish() without start()"
        self._book(self._current)
        self._is_running = False
        first, *rest = self._parts.values()
        return sum(rest, first), self._parts

    @property
    def _current(self) -> str:
        return self._entered[0] if self._entered else self._held or OTHER

    def _cut(self, before: str) -> None:
        if self._current != before:
            self._book(before)
            self._probe.start()

    def _book(self, name: str) -> None:
        reading = self._probe.read()  # waits for the device: the clock is read after it
        now = time.perf_counter()
        part = Part(now - self._since, 1, reading, self._before_bytes)
        self._since, self._before_bytes = now, reading.current_bytes
        self._parts[name] = self._parts[name] + part if name in self._parts else part
