"""One trained arm of a bounded run, read back from what its process left behind."""

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, model_validator
from torch import Tensor

from panda_icefall.routing import LossTotals
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.memory.part_watch import added_by_losses
from panda_icefall.runs.memory.probe import MemoryReading
from panda_icefall.runs.memory.reading import read_last_run
from panda_icefall.runs.records import (
    BACKWARD_UPDATE,
    COMPUTE_LOSS,
    STEP_PHASES,
    Arm,
    PartFigures,
    Step,
    validated,
)

__all__ = ["final_parameters", "read_arm"]


class _Memory(BaseModel):
    """Memory in a row of the log, under the names of ``MemoryReading.as_row``."""

    allocated_bytes: int | None = None
    rss_bytes: int | None = None
    peak_bytes: int | None = None
    peak_rss_bytes: int | None = None
    peak_is_since_start: bool = False

    @property
    def current(self) -> int | None:
        return self.rss_bytes if self.allocated_bytes is None else self.allocated_bytes

    @property
    def peak(self) -> int:
        return (self.peak_rss_bytes if self.peak_bytes is None else self.peak_bytes) or 0

    @property
    def reading(self) -> MemoryReading:
        is_since_start = self.peak_is_since_start or self.current is None
        return MemoryReading("", self.current or 0, self.peak, None, is_since_start)


class _Versions(BaseModel):
    threads: int | None = None


class _Header(BaseModel):
    options: dict[str, Any] | None = None
    versions: _Versions = _Versions()
    memory: _Memory = _Memory()


class _Part(_Memory):
    step: int
    phase: str
    seconds: float


class _Phase(_Part):
    batch_idx_train: int | None = None
    loss: float = math.nan
    frames: float = 0.0
    grad_scale: float | None = None
    error: str | None = None
    counters: LossTotals

    @model_validator(mode="before")
    @classmethod
    def _gather_counters(cls, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "counters": row}


def read_arm(memory_log: Path) -> Arm:
    """Steps, memory and counters of one process, from its memory log.

    A log that ends early is read as far as it goes; a step counts once both its outer phases were
    written. Of several runs in one log, the last one is read.

    Args:
      memory_log: What ``--panda-memory-log`` named; it may not be there yet.

    Raises:
      UsageError: A row is none of a memory log.
    """
    rows = read_last_run(memory_log) if memory_log.exists() else []
    header = _Header()
    parts: dict[int, list[_Part]] = {}
    phases: list[_Phase] = []
    for row in rows:
        if row["row"] == "header":
            header = validated(_Header, row, memory_log)
        elif row["row"] == "part":
            part = validated(_Part, row, memory_log)
            parts.setdefault(part.step, []).append(part)
        elif row["row"] == "phase":
            phases.append(validated(_Phase, row, memory_log))
    by_step: dict[int, dict[str, _Phase]] = {}
    for phase in phases:
        if phase.error is None:
            by_step.setdefault(phase.step, {})[phase.phase] = phase
    is_on_gpu = any(phase.allocated_bytes is not None for phase in phases)
    return Arm(
        steps=[
            _step(number, by_step[number], parts.get(number, []))
            for number in sorted(by_step)
            if by_step[number].keys() >= set(STEP_PHASES)
        ],
        memory_kind="CUDA allocated" if is_on_gpu else "process RSS",
        base_bytes=header.memory.current,
        options=header.options,
        counters=sum((phase.counters for phase in phases), LossTotals()),
        threads=header.versions.threads,
    )


def _step(number: int, outer: dict[str, _Phase], parts: list[_Part]) -> Step:
    loss = outer[COMPUTE_LOSS]
    figures: dict[str, PartFigures] = {}
    for part in parts:
        earlier = figures.get(part.phase, PartFigures(seconds=0.0, peak_bytes=0))
        figures[part.phase] = PartFigures(
            seconds=(earlier.seconds or 0.0) + part.seconds,
            peak_bytes=max(earlier.peak_bytes or 0, part.peak),
        )
    return Step(
        step=number,
        batch_idx_train=loss.batch_idx_train,
        loss=loss.loss / (loss.frames or 1),
        seconds=sum(phase.seconds for phase in outer.values()),
        peak_bytes=max(phase.peak for phase in outer.values()),
        losses_bytes=added_by_losses({part.phase: part.reading for part in parts}),
        grad_scale=outer[BACKWARD_UPDATE].grad_scale,
        phases=figures,
    )


def final_parameters(exp_dir: Path, epoch: int = 1) -> dict[str, Tensor]:
    """The model of the checkpoint with which a recipe ended an epoch, its first.

    Raises:
      UsageError: There is none, it cannot be read, or it holds no model.
    """
    path = exp_dir / f"epoch-{epoch}.pt"
    if not path.is_file():
        raise UsageError(f"{path}: not written, expected the recipe's checkpoint of epoch {epoch}")
    # Written by this run a moment ago; recipes keep Path objects and the like in it.
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
    except (EOFError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{path}: cannot be read, {type(error).__name__}: {error}; expected a complete "
            "checkpoint of the recipe; run that arm again"
        ) from error
    if "model" not in content:
        raise UsageError(f"{path}: got the keys {sorted(content)}, expected one named model")
    return dict(content["model"])
