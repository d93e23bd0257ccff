"""Time and memory of a step by every method: what matters most first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.arms import ARMS, Step, arms_of
from benchmarks.device_events import events_of
from benchmarks.gemm_limit import products_of
from benchmarks.inputs import LossInputs
from benchmarks.memory import PeakMeter, is_out_of_memory
from benchmarks.precision import PRECISIONS, is_supported
from benchmarks.steps import site_shares
from benchmarks.timing import quartiles, seconds_of

from gpu_validation.batches import CLASSES, adjoints_here, batch
from gpu_validation.report import Setting
from panda_icefall.lattice import has_k2_recursion

LEFT_OUT = ("panda-no-model", "row-chunks")
WORKSPACES_MIB = (32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
WARM_UPS, REPEATS = 2, 5


@dataclass(frozen=True)
class Group:
    """Methods that are compared: one batch, one part of the loss, one precision."""

    adjoints: str
    classes: int
    precision: str
    part: str

    @property
    def is_goal(self) -> bool:
        """Whether it is what goals are set for."""
        return (self.classes, self.precision) == (5537, "bf16")

    @property
    def rank(self) -> tuple[Any, ...]:
        """Lower ones first."""
        order = {"bf16": 0, "fp32": 1, "tf32": 2, "fp16": 3}
        return (
            not self.is_goal,
            self.part != "whole",
            order[self.precision],
            self.adjoints != "trained",
            CLASSES.index(self.classes),
        )

    def __str__(self) -> str:
        return f"{self.part} loss, C={self.classes}, {self.precision}, {self.adjoints} adjoints"


def run(setting: Setting) -> None:
    inputs: dict[tuple[str, int], LossInputs] = {}
    is_swept = False
    for group in groups(setting):
        if setting.report.is_over(str(group)):
            continue
        key = (group.adjoints, group.classes)
        if key not in inputs:
            inputs = {key: batch(setting, *key)}
        # One for all methods: to draw the parameters takes longer than a step.
        first = Step.make("dense", group.part, inputs[key], None, group.precision)
        for arm in methods(setting, group):
            _measure(setting, group, arm, first)
        if not is_swept:
            is_swept = True
            for size in setting.size(WORKSPACES_MIB, WORKSPACES_MIB[:1]):
                _measure(setting, group, "panda", first, size)


def groups(setting: Setting) -> list[Group]:
    """All of them by their rank; in a dry run one of each kind of batch."""
    if setting.is_dry:
        return [Group("trained", 120, "fp32", "pruned"), Group("random", 40, "bf16", "whole")]
    precisions = [p for p in PRECISIONS if is_supported(p, setting.device)]
    found = [
        Group(adjoints, classes, precision, part)
        for adjoints in adjoints_here(setting)
        for classes in CLASSES
        for precision in precisions
        for part in ("whole", "simple", "pruned")
    ]
    return sorted(found, key=lambda group: group.rank)


def methods(setting: Setting, group: Group) -> Iterator[str]:
    """Names of the arms; k2's where it works on the device."""
    for arm in arms_of(group.part, "cuda", group.precision):
        if arm not in LEFT_OUT and (arm != "k2" or has_k2_recursion(setting.device)):
            yield arm


def _measure(
    setting: Setting, group: Group, arm: str, first: Step, size: float | None = None
) -> None:
    """One row; of a method that needs more memory than there is, its name alone.

    Args:
      first: a step with the model and the inputs.
      size: of the workspace in MiB; None: its default.
    """
    table = "methods" if size is None else "workspaces"
    named = {**vars(group), "arm": arm, "label": ARMS[arm].label, "workspace_mib": size}
    with setting.report.case(f"{group}: {ARMS[arm].label}"):
        try:
            step = Step.make(
                arm, group.part, first.inputs, size, group.precision, model=first.model
            )
            row = _figures(setting, group, step)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            row = {"is_out_of_memory": True}
        setting.report.row(table, **named, **row)
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


def _figures(setting: Setting, group: Group, step: Step) -> dict[str, Any]:
    device = setting.device
    with step.applied():
        for _ in range(setting.size(WARM_UPS, 0)):
            step.compute()
        step.begin()  # without the gradients of the last one
        meter = PeakMeter(device)
        meter.start()
        loss = float(step.compute())
        peak = meter.peak_bytes()
        reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
        step.check()
        shares = site_shares()
        step.compute()  # the allocator has its memory again
        repeats = setting.size(REPEATS, 1)
        taken = quartiles([seconds_of(step.compute, device) for _ in range(repeats)])
        is_audited = group.part == "whole" or group.is_goal
        events = events_of(step.compute, device) if is_audited else None
    products = products_of(step)
    return {
        "is_out_of_memory": False, "loss": loss, **taken,
        "busy_seconds": None if events is None else events.busy_seconds,
        "launches": None if events is None else events.launches,
        "peak_allocated_bytes": peak, "peak_reserved_bytes": reserved,
        "forward_share": shares[0], "backward_share": shares[1],
        "product_flops": sum(p.flops for p in products),
        "product_bytes": sum(p.bytes for p in products),
    }  # fmt: skip
