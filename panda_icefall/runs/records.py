"""What the processes of a run leave as JSON, as typed records: outcome, steps, arms.

A file is validated once, by :func:`validated`, when it is read; after that these are objects. NaN
and infinities are numbers here; JSON holds them as text. Keys that an older version did not write
have defaults, and keys that this version does not know are kept.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from panda_icefall.routing import LossTotals
from panda_icefall.runs.atomic_file import replace_json
from panda_icefall.runs.errors import UsageError

__all__ = [
    "BACKWARD",
    "BACKWARD_UPDATE",
    "COMPUTE_LOSS",
    "ENCODER",
    "FULL_LOSS",
    "OPTIMIZER",
    "OTHER",
    "PRUNED_LOSS",
    "SIMPLE_LOSS",
    "STEP_PHASES",
    "Arm",
    "PartFigures",
    "Record",
    "RunOutcome",
    "Step",
    "nan_first",
    "nan_last",
    "phases_of",
    "read_outcomes",
    "validated",
]

# The phases of a training step, and the parts that they are cut into, in their order.
STEP_PHASES = COMPUTE_LOSS, BACKWARD_UPDATE = "compute_loss", "backward_update"
STEP_PARTS = ENCODER, SIMPLE_LOSS, PRUNED_LOSS, FULL_LOSS, BACKWARD, OPTIMIZER, OTHER = (
    "encoder",
    "simple_loss",
    "pruned_loss",
    "full_loss",
    "backward",
    "optimizer",
    "other",
)
_OUTCOME_FILES = "rank*.json"

Bytes = int | float


class Record(BaseModel):
    """Base of all records; ``model_dump(exclude_unset=True)`` gives back what was read."""

    model_config = ConfigDict(extra="allow")


_Record = TypeVar("_Record", bound=BaseModel)


def validated(kind: type[_Record], content: Any, where: object) -> _Record:
    """``content`` as a ``kind``.

    Args:
      kind: The record's class.
      content: JSON values.
      where: The file they are from, for the error.

    Raises:
      UsageError: A key is missing or has another type; the message names the first such key.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise UsageError(
            f"{where}: {key}: {first['msg']}; expected a file that panda-icefall has written"
        ) from error


class RunOutcome(Record):
    """What one process of a run did.

    Attributes:
      rank: Rank of the process.
      batches: Training batches that were trained.
      seconds: Wall time from the start to the end of the recipe in this process.
      counters: What routing counted for the recipe, checks left out.
      is_bounded: The run was ended by a bound that the user set.
      memory_log: The memory log written, if any.
      contract: The contract report written, if any.
      violations: Violations of the contract.
      error: What ended the run, where that was an error with a name: its class and its message.
      device: The training device.
      peak_bytes: The most memory that the process had: allocated on CUDA, resident on CPU.
      losses_bytes: The most that the losses of a step added in forward, which the memory log knows;
        0: unknown.
      memory_log_error: Why the memory log ends before the run, if it does.
      non_finite: The report on the first batch with a loss that is not finite, or that a loss
        refused.
      non_finite_batches: Training batches with a loss that is not finite.
      verified_batches, verified_losses: Batches whose losses the guard compared with dense ones.
    """

    rank: int
    batches: int
    seconds: float
    counters: LossTotals = Field(default_factory=LossTotals)
    is_bounded: bool = False
    memory_log: str | None = None
    contract: str | None = None
    violations: tuple[str, ...] = ()
    error: tuple[str, str] | None = None
    device: str = "cpu"
    peak_bytes: int = 0
    losses_bytes: int = 0
    memory_log_error: str | None = None
    non_finite: str | None = None
    non_finite_batches: int = 0
    verified_batches: int = 0
    verified_losses: int = 0

    def write(self, folder: Path) -> None:
        """Leave the outcome for the parent process in ``folder``, in place of an earlier one."""
        replace_json(folder / f"rank{self.rank}.json", self.model_dump())


def read_outcomes(folder: Path) -> list[RunOutcome]:
    """The outcomes that child processes left in ``folder``, by rank."""
    outcomes = [
        validated(RunOutcome, json.loads(path.read_text(encoding="utf-8")), path)
        for path in folder.glob(_OUTCOME_FILES)
    ]
    return sorted(outcomes, key=lambda outcome: outcome.rank)


class PartFigures(Record):
    """Time and peak memory within one part of a training step."""

    seconds: float | None = None
    peak_bytes: Bytes | None = None


class Step(Record):
    """One training step of one arm; what was not measured is ``None``.

    Attributes:
      step: Number of the step in its process, from 1.
      batch_idx_train: The recipe's own count of batches.
      loss: Training loss per frame, in nats; may be NaN or infinite.
      seconds: Wall time.
      peak_bytes: Peak memory.
      losses_bytes: Of it, what the losses added in forward to what the encoder had left.
      grad_scale: Loss scale under fp16.
      phases: Time and peak by part of the step.
    """

    step: int
    batch_idx_train: int | None = None
    loss: float | None = None
    seconds: float | None = None
    peak_bytes: Bytes | None = None
    losses_bytes: Bytes | None = None
    grad_scale: float | None = None
    phases: dict[str, PartFigures] = {}

    @property
    def batch(self) -> int:
        """The recipe's own count, which a resumed run takes up; the process's where it has none."""
        return self.step if self.batch_idx_train is None else self.batch_idx_train

    @property
    def is_finite(self) -> bool:
        """Whether the loss is known, and neither NaN nor infinite."""
        return self.loss is not None and math.isfinite(self.loss)


class Arm(Record):
    """One training process of a bounded run.

    Attributes:
      steps: Its complete steps, in order.
      memory_kind: What its bytes are, as ``process RSS``.
      base_bytes: Memory before the first step.
      options: PANDA's options, as its process read them.
      counters: What routing counted, summed over the steps.
      threads: Of torch, in its process while it trained.
    """

    steps: list[Step] = []
    memory_kind: str = "memory"
    base_bytes: Bytes | None = None
    options: dict[str, Any] | None = None
    counters: LossTotals = Field(default_factory=LossTotals)
    threads: int | None = None

    @field_serializer("counters")
    def by_counter(self, counters: LossTotals) -> dict[str, Any]:
        """The counters by name, in the order of the report: the words below the numbers."""
        values = dataclasses.asdict(counters)
        materialised = values.pop("materialised")
        return {**values, "materialised": materialised}

    @property
    def settled(self) -> list[Step]:
        """The steps without the first, which also pays for warming up; that one if it is alone."""
        return self.steps[1:] or self.steps

    @property
    def peak_bytes(self) -> Bytes | None:
        """The largest peak of any step."""
        return max((s.peak_bytes for s in self.steps if s.peak_bytes is not None), default=None)

    @property
    def added_bytes(self) -> Bytes | None:
        """The largest peak above the memory before the first step."""
        peak = self.peak_bytes
        return None if peak is None or self.base_bytes is None else peak - self.base_bytes

    @property
    def losses_bytes(self) -> Bytes | None:
        """The most that the losses added in forward, of any step."""
        return max((s.losses_bytes for s in self.steps if s.losses_bytes is not None), default=None)

    @property
    def median_seconds(self) -> float | None:
        """Median wall time of the settled steps."""
        return _median(s.seconds for s in self.settled)

    def phase_peak_bytes(self, phase: str) -> float | None:
        """Median over the settled steps of the peak within ``phase``."""
        return _median(s.phases[phase].peak_bytes for s in self.settled if phase in s.phases)

    def phase_seconds(self, phase: str) -> float | None:
        """Median over the settled steps of the wall time within ``phase``."""
        return _median(s.phases[phase].seconds for s in self.settled if phase in s.phases)

    def loss_differences(self, reference: "Arm") -> dict[int, float]:
        """By step, how far the loss is from that of ``reference``, relative to it.

        Losses of one batch are compared; steps without a finite one in both runs are left out.
        """
        losses = {s.batch: s.loss for s in reference.steps if s.is_finite and s.loss}
        return {
            s.step: abs(s.loss - losses[s.batch]) / abs(losses[s.batch])
            for s in self.steps
            if s.batch in losses and s.loss is not None and s.is_finite
        }

    def is_finite_where(self, reference: "Arm") -> bool:
        """Whether of each batch that both trained both losses are finite, or neither is."""
        finite = {s.batch: s.is_finite for s in reference.steps if s.loss is not None}
        return all(
            finite.get(s.batch, s.is_finite) == s.is_finite
            for s in self.steps
            if s.loss is not None
        )

    def up_to(self, step: int) -> "Arm":
        """The same arm ended after ``step``."""
        steps = [s for s in self.steps if s.step <= step]
        return self.model_copy(update={"steps": steps or self.steps[:1]})


def phases_of(arms: Iterable[Arm]) -> list[str]:
    """The parts that any of ``arms`` measured, in the order of a training step."""
    found = dict.fromkeys(
        name
        for arm in arms
        for step in arm.steps
        for name, part in step.phases.items()
        if part.seconds is not None or part.peak_bytes is not None
    )
    known = [part for part in STEP_PARTS if part in found]
    return known + [part for part in found if part not in STEP_PARTS]


def nan_last(value: float) -> tuple[bool, float]:
    """A key for ``max`` that lets no NaN pass unseen."""
    return math.isnan(value), value


def nan_first(value: float) -> tuple[bool, float]:
    """The same for ``min``."""
    return not math.isnan(value), value


def _median(values: Iterable[Bytes | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
