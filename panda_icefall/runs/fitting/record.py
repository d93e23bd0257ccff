"""What a search has found: ``fit.json`` and its trials, as typed records."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from panda_icefall.runs.hooks.worst_batches import BatchSize
from panda_icefall.runs.records import Bytes, Record, validated

__all__ = [
    "FAILED",
    "FITS",
    "KILLED",
    "LIMITS",
    "MEASURED",
    "NO_BATCH",
    "OUT_OF_MEMORY",
    "REPORT",
    "ArmFit",
    "FitRecord",
    "Trial",
    "read_record",
]

REPORT = "fit.json"
FITS, OUT_OF_MEMORY, KILLED, NO_BATCH, FAILED = (
    "fits",
    "out of memory",
    "killed",
    "no batch",
    "failed",
)
LIMITS = (OUT_OF_MEMORY, KILLED)  # what says that a batch was too large
# What a later search in the folder takes over; it makes the other trials again, as somebody else
# may have killed one.
MEASURED = (FITS, OUT_OF_MEMORY, NO_BATCH)


class Trial(Record):
    """What one trial came to.

    Attributes:
      arm: ``dense`` or ``routed``.
      max_duration: ``--max-duration``, seconds.
      outcome: ``killed``: by SIGKILL, as the system does where it runs out of memory; ``no batch``:
        the data were too few to make one; ``failed``: for another reason than memory.
      detail: The last words of one that did not fit.
      tail: The last lines of the output of one that failed.
      seconds: Wall time.
      exit_status: Of its process; negative: a signal's number.
      peak_bytes: The largest peak of its steps; of those that were finished.
      base_bytes: Memory before the first step.
      available_bytes: What its steps could have had at most.
      memory_kind: What these bytes are.
      worst: The batches it ran, the one with most seconds after padding first.
      log: Its output, relative to the folder of the search.
    """

    arm: str
    max_duration: int
    outcome: Literal["fits", "out of memory", "killed", "no batch", "failed"]
    detail: str = ""
    tail: str = ""
    seconds: float
    exit_status: int
    peak_bytes: Bytes | None = None
    base_bytes: Bytes | None = None
    available_bytes: int | None = None
    memory_kind: str = "memory"
    worst: list[BatchSize] = Field(default_factory=list)
    log: str

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.arm} --max-duration {self.max_duration}"

    @property
    def padded_seconds(self) -> float:
        """Of the largest of its batches."""
        return self.worst[0].padded_seconds if self.worst else 0.0

    @property
    def room(self) -> float | None:
        """How many times its memory above what is always there may be used; None: unknown."""
        peak, base, available = self.peak_bytes, self.base_bytes, self.available_bytes
        if peak is None or base is None or available is None or peak <= base:
            return None
        return max(0.0, (available - base) / (peak - base))


class ArmFit(Record):
    """The result of one arm; durations in seconds.

    Attributes:
      fits: The largest ``--max-duration`` that has fitted; 0: none.
      too_long: The smallest that has not; None: none was tried.
      lacks_data: The data make no larger batches: memory was not the bound.
      is_settled: The search ended by itself: not by its number of trials, nor by an interruption.
    """

    fits: int
    too_long: int | None
    lacks_data: bool
    is_settled: bool


class FitRecord(Record):
    """``fit.json``: everything that searches in its folder have found so far.

    Attributes:
      state: ``running``, ``complete`` or ``partial``.
      reason: Why it is partial.
      inputs: All that a trial depends on, by name.
      arms: The result of each arm.
      trials: In their order, after those that an earlier search in the folder has measured.
    """

    state: str = "running"
    reason: str | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    started: str | None = None
    seconds: float | None = None
    arms: dict[str, ArmFit] = Field(default_factory=dict)
    trials: list[Trial] = Field(default_factory=list)

    @property
    def measured(self) -> list[Trial]:
        """The trials whose outcome memory or the data decided."""
        return [trial for trial in self.trials if trial.outcome in MEASURED]

    @property
    def has_findings(self) -> bool:
        """Whether a trial says something of the memory, one that the system killed included."""
        return any(trial.outcome != FAILED for trial in self.trials)

    @property
    def failed(self) -> Trial | None:
        """The trial that ended the search for another reason than memory, if one did."""
        return next((trial for trial in self.trials if trial.outcome == FAILED), None)

    def best(self, arm: str) -> Trial | None:
        """The largest trial that has fitted."""
        largest = self.arms[arm].fits
        fitting = (t for t in self.trials if t.arm == arm and t.outcome == FITS)
        return next((trial for trial in fitting if trial.max_duration == largest), None)


def read_record(folder: Path) -> FitRecord:
    """What a search has left in a folder.

    Raises:
      OSError, ValueError, UsageError: There is no ``fit.json``, or it is none of a search.
    """
    path = folder / REPORT
    record = validated(FitRecord, json.loads(path.read_text(encoding="utf-8")), path)
    if not record.inputs:
        raise ValueError(f"{path}: got no inputs")
    return record
