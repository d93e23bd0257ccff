"""A bounded run's content, read for a report: what is not there yet reads as nothing.

The content is what ``report.json`` holds, so NaN and infinities may be numbers or their spelling.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

__all__ = [
    "Arm",
    "Step",
    "absence",
    "comparable_arms",
    "finite",
    "items",
    "mapping",
    "number",
    "phases_of",
    "read_arm",
]

_PHASES = ("encoder", "simple_loss", "pruned_loss", "backward", "optimizer", "other")


@dataclass(frozen=True)
class Step:
    """One training step of one arm; what was not measured is ``None``.

    Attributes:
      step: Number of the step, from 1.
      loss: Training loss per frame, in nats; may be NaN or infinite.
      seconds: Wall time.
      peak_bytes: Peak memory.
      losses_bytes: Of it, what the losses added in forward to what the encoder had left.
      grad_scale: Loss scale under fp16.
      phase_seconds, phase_peak_bytes: The same by phase.
    """

    step: int
    loss: Optional[float]
    seconds: Optional[float]
    peak_bytes: Optional[float]
    losses_bytes: Optional[float]
    grad_scale: Optional[float]
    phase_seconds: Mapping[str, float]
    phase_peak_bytes: Mapping[str, float]


@dataclass(frozen=True)
class Arm:
    """One training process: its steps in order, at least one.

    Attributes:
      steps: The steps.
      memory_kind: What its bytes are, as ``process RSS``.
      base_bytes: Memory before the first step.
      options: PANDA's options, as its process read them.
      counters: What routing counted.
    """

    steps: tuple[Step, ...]
    memory_kind: str
    base_bytes: Optional[float]
    options: Mapping[str, Any]
    counters: Mapping[str, Any]

    @property
    def settled(self) -> tuple[Step, ...]:
        """The steps without the first, which also pays for warming up; that one if it is alone."""
        return self.steps[1:] or self.steps

    @property
    def peak_bytes(self) -> Optional[float]:
        """The largest peak of any step."""
        return max((s.peak_bytes for s in self.steps if s.peak_bytes is not None), default=None)

    @property
    def losses_bytes(self) -> Optional[float]:
        """The most that the losses added in forward, of any step."""
        return max((s.losses_bytes for s in self.steps if s.losses_bytes is not None), default=None)

    @property
    def median_seconds(self) -> Optional[float]:
        """Median wall time of the settled steps."""
        return _median(s.seconds for s in self.settled)

    def phase_peak_bytes(self, phase: str) -> Optional[float]:
        """Median over the settled steps of the peak within ``phase``."""
        return _median(s.phase_peak_bytes.get(phase) for s in self.settled)

    def phase_seconds(self, phase: str) -> Optional[float]:
        """Median over the settled steps of the wall time within ``phase``."""
        return _median(s.phase_seconds.get(phase) for s in self.settled)

    def up_to(self, step: int) -> "Arm":
        """The same arm ended after ``step``."""
        steps = tuple(s for s in self.steps if s.step <= step)
        return dataclasses.replace(self, steps=steps or self.steps[:1])


def number(value: Any) -> Optional[float]:
    """``value`` as a float, ``nan`` and ``inf`` spelt out included; ``None`` for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)) or (
        isinstance(value, str) and value.lower() in ("nan", "inf", "-inf")
    ):
        return float(value)
    return None


def finite(value: Any) -> Optional[float]:
    """Like :func:`number`, and ``None`` for NaN and infinities too."""
    read = number(value)
    return read if read is not None and math.isfinite(read) else None


def mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a mapping, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def items(value: Any) -> list[dict[str, Any]]:
    """The mappings in the list ``value``; a mapping alone is a list of one."""
    if isinstance(value, Mapping):
        return [dict(value)]
    if not isinstance(value, (list, tuple)):
        return []
    return [dict(item) for item in value if isinstance(item, Mapping)]


def read_arm(content: Mapping[str, Any], name: str) -> Optional[Arm]:
    """The arm ``name`` of ``content``, or ``None`` while it has no step."""
    arm = mapping(mapping(content.get("arms")).get(name))
    steps = tuple(_step(row, index) for index, row in enumerate(items(arm.get("steps")), start=1))
    if not steps:
        return None
    return Arm(
        steps=steps,
        memory_kind=str(arm.get("memory_kind") or "memory"),
        base_bytes=finite(arm.get("base_bytes")),
        options=mapping(arm.get("options")),
        counters=mapping(arm.get("counters")),
    )


def absence(content: Mapping[str, Any]) -> str:
    """Why something is not in ``content``, as far as the state of the run tells."""
    states = {"complete": "not part of this run", "partial": "not reached"}
    return states.get(str(content.get("state")), "not run yet")


def comparable_arms(content: Mapping[str, Any]) -> dict[str, Arm]:
    """The dense and the routed arm, those there are, over the steps that both have."""
    read = {name: read_arm(content, name) for name in ("dense", "routed")}
    arms = {name: arm for name, arm in read.items() if arm is not None}
    last = min((arm.steps[-1].step for arm in arms.values()), default=0)
    return {name: arm.up_to(last) for name, arm in arms.items()}


def phases_of(arms: Iterable[Arm]) -> list[str]:
    """The phases that any of ``arms`` measured, in the order of a training step."""
    measured = {
        phase: None
        for arm in arms
        for step in arm.steps
        for phase in (*step.phase_peak_bytes, *step.phase_seconds)
    }
    known = [phase for phase in _PHASES if phase in measured]
    return known + [phase for phase in measured if phase not in _PHASES]


def _step(row: Mapping[str, Any], index: int) -> Step:
    phases = {name: mapping(values) for name, values in mapping(row.get("phases")).items()}
    return Step(
        step=int(finite(row.get("step")) or index),
        loss=number(row.get("loss")),
        seconds=finite(row.get("seconds")),
        peak_bytes=finite(row.get("peak_bytes")),
        losses_bytes=finite(row.get("losses_bytes")),
        grad_scale=finite(row.get("grad_scale")),
        phase_seconds=_present(phases, "seconds"),
        phase_peak_bytes=_present(phases, "peak_bytes"),
    )


def _present(phases: Mapping[str, Mapping[str, Any]], field: str) -> dict[str, float]:
    read = {name: finite(values.get(field)) for name, values in phases.items()}
    return {name: value for name, value in read.items() if value is not None}


def _median(values: Iterable[Optional[float]]) -> Optional[float]:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
