"""Whole losses, from encoder outputs to gradients, against the dense loss in float64.

PANDA's error is at most twice that of the dense loss in the same precision, or some ulp: a gradient
of a small batch is one draw of its rounding.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gates
import torch
from benchmarks.arms import Step
from benchmarks.inputs import LossInputs
from benchmarks.losses import LOSSES, LossStep
from benchmarks.packages import is_installed
from benchmarks.precision import is_supported
from benchmarks.shapes import LossShape
from benchmarks.steps import TrainingStep

import panda_icefall
from gpu_validation.report import Setting
from panda_icefall.lattice import has_k2_recursion

# As ragged as may be; no size divides another, but for what GEMMs ask of an even width.
SHAPE = LossShape(B=5, T=43, S=11, s_range=5, C=501, H=64, D=48, shortest=0.3)
TINY = LossShape(B=2, T=9, S=3, s_range=3, C=23, H=8, D=6, shortest=0.5)
# By precision: how many ulp of the exact values' RMS always pass, and the size of one.
ULPS = {"fp32": (8, 2**-23), "bf16": (2, 2**-8), "fp16": (2, 2**-11)}


@dataclass(frozen=True)
class Way:
    """One way in which PANDA computes a loss of one's own loop.

    Attributes:
      name: for the report.
      options: of `panda_icefall.transducer_loss`.
      hides_k2: as where k2 is not installed.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    hides_k2: bool = False

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """A block in which it is so."""
        k2 = sys.modules.get("k2")
        if self.hides_k2:
            sys.modules["k2"] = None  # type: ignore[assignment]  # so that its import fails
        try:
            yield
        finally:
            if self.hides_k2:
                sys.modules["k2"] = k2


def run(setting: Setting) -> None:
    inputs = LossInputs.random(setting.size(SHAPE, TINY), setting.device)
    exact_inputs = inputs.in_float64()
    for part in ("simple", "pruned"):
        exact = outcome(Step.make("dense", part, exact_inputs))
        for precision in precisions(setting):
            dense = outcome(Step.make("dense", part, inputs, None, precision))
            for arm in ("panda", "panda-torch"):
                case = f"icefall's {part} loss, {precision}, {arm}"
                if not setting.report.is_over(case):
                    with setting.report.case(case):
                        ours = outcome(Step.make(arm, part, inputs, None, precision))
                        judge(setting, case, precision, ours, dense, exact)
    for loss in LOSSES:
        exact = outcome(LossStep.make("dense", loss, exact_inputs))
        for precision in precisions(setting):
            dense = outcome(LossStep.make("dense", loss, inputs, None, precision))
            for way in ways(setting):
                case = f"{loss}, {precision}, {way.name}"
                if not setting.report.is_over(case):
                    with setting.report.case(case), way.around():
                        step = LossStep.make("panda", loss, inputs, None, precision)
                        step.panda_options = way.options
                        judge(setting, case, precision, outcome(step), dense, exact)
    for name in ("k2's recursion", "without k2"):
        if name not in [way.name for way in ways(setting)]:
            why = "is not installed" if not is_installed("k2") else "has none for this device"
            setting.report.skip(f"losses with {name}", f"k2 {why}")


def precisions(setting: Setting) -> list[str]:
    return [p for p in ULPS if is_supported(p, setting.device)]


def ways(setting: Setting) -> list[Way]:
    """All that this machine and this version have."""
    found = [Way("as it comes"), Way("engine torch", {"engine": "torch"})]
    if has_k2_recursion(setting.device):
        # Where the recursion can be chosen; else k2's is what comes.
        options = inspect.signature(panda_icefall.transducer_loss).parameters
        chosen = {"recursion": "k2"} if "recursion" in options else {}
        found += [Way("k2's recursion", chosen), Way("without k2", hides_k2=True)]
    return found


def outcome(step: TrainingStep) -> dict[str, torch.Tensor]:
    """The loss and all gradients of one step."""
    loss = step.run()
    return {"loss": loss, **{name: g.clone() for name, g in step.gradients().items()}}


def judge(
    setting: Setting,
    case: str,
    precision: str,
    ours: dict[str, torch.Tensor],
    dense: dict[str, torch.Tensor],
    exact: dict[str, torch.Tensor],
) -> None:
    """A check of the loss and of every gradient, whose worst one is told."""
    ulps, eps = ULPS[precision]
    ratios = {}
    for name, reference in exact.items():
        of_dense = gates.rms(dense[name] - reference)
        bound = max(2 * of_dense, ulps * eps * gates.rms(reference))
        error = gates.rms(ours[name] - reference)
        ratios[name] = error / bound if bound else (float("inf") if error else 0.0)
    worst = max(ratios, key=lambda name: gates.nan_last(ratios[name]))
    is_ok = ours.keys() == exact.keys() and all(ratio <= 1 for ratio in ratios.values())
    setting.report.check(case, is_ok, worst=worst, error_by_bound=ratios[worst])
