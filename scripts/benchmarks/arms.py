"""The methods that are compared, by name, and one training step of each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import panda_icefall
from benchmarks import k2_of_2025
from benchmarks.class_tiles import class_tiled_log_probs
from benchmarks.inputs import LossInputs
from benchmarks.model import SiteMethod, TransducerLoss
from benchmarks.packages import is_installed, package_version
from benchmarks.precision import PRECISIONS
from benchmarks.row_tiles import checkpointed_row_log_probs, chunked_row_log_probs
from benchmarks.steps import TrainingStep
from panda_icefall.routing import patched_module


@dataclass(frozen=True)
class Arm:
    """How one method computes the loss.

    Attributes:
      label: for tables; baselines say so.
      parts: what it can compute, see `model.PARTS`.
      site_method: see `TransducerLoss.forward`.
      is_routed: under `panda_icefall.patched`.
      uses_installed: calls the functions that are installed, k2's or the project's, and not those
        of `k2_of_2025`; those are the ones that are routed.
      records_model: with ``model=``, so that the simple loss's projections are not run either.
      adjoint_tolerance, engine: see `panda_icefall.apply`.
      package: what must be installed.
      devices: types of those where it is measured.
      precisions: that it is published for.
    """

    label: str
    parts: tuple[str, ...]
    site_method: SiteMethod | None = None
    is_routed: bool = False
    uses_installed: bool = False
    records_model: bool = False
    adjoint_tolerance: float | None = None
    engine: str = "auto"
    package: str | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    precisions: tuple[str, ...] = PRECISIONS

    @property
    def is_available(self) -> bool:
        """Whether its package is installed."""
        return self.package is None or is_installed(self.package)


_ALL = ("whole", "simple", "pruned")
_SITES = ("whole", "pruned")

# In the order of the tables; the first is what the others are compared with.
ARMS: dict[str, Arm] = {
    "dense": Arm("dense as k2 of 2025", _ALL),
    "k2": Arm(f"k2 {package_version('k2')}", _ALL, uses_installed=True, package="k2"),
    "panda": Arm("PANDA", _ALL, is_routed=True, uses_installed=True, records_model=True),
    "panda-all-sites": Arm(
        "PANDA, tolerance 0", _SITES, is_routed=True, uses_installed=True, records_model=True,
        adjoint_tolerance=0.0,
    ),
    "panda-torch": Arm(  # on a CPU it is the engine of all
        "PANDA, torch engine", _ALL, is_routed=True, uses_installed=True, records_model=True,
        engine="torch", devices=("cuda",),
    ),
    "panda-no-model": Arm(
        "PANDA, real am and lm", ("whole", "simple"), is_routed=True, uses_installed=True
    ),
    "class-tiles": Arm(
        "baseline: class tiles (PANDA paper)", _SITES, site_method=class_tiled_log_probs,
        precisions=("fp32", "tf32"),
    ),
    "row-tiles": Arm(
        "baseline: row tiles, checkpointed (NeMo)", _SITES, site_method=checkpointed_row_log_probs
    ),
    "row-chunks": Arm(
        "baseline: chunked linear + logsumexp", _SITES, site_method=chunked_row_log_probs
    ),
}  # fmt: skip


def arms_of(part: str, device: str = "cpu", precision: str = "fp32") -> list[str]:
    """Names of the methods that compute a part, are installed, and are measured in this way."""
    return [
        name
        for name, arm in ARMS.items()
        if part in arm.parts
        and arm.is_available
        and device in arm.devices
        and precision in arm.precisions
    ]


@dataclass
class Step(TrainingStep):
    """Forward and backward of one part of a recipe's loss with one method.

    Attributes:
      arm: name of the method.
      part: see `model.PARTS`.
      inputs, model: what it works on.
      workspace_mib: of PANDA; None: its default.
      recursion: of PANDA, see `panda_icefall.apply`.
      precision, scaled: see `TrainingStep`.
    """

    arm: str
    part: str
    inputs: LossInputs
    model: TransducerLoss
    workspace_mib: float | None = None
    precision: str = "fp32"
    scaled: Callable[[Tensor], Tensor] | None = None
    recursion: str = "auto"

    @classmethod
    def make(
        cls,
        arm: str,
        part: str,
        inputs: LossInputs,
        workspace_mib: float | None = None,
        precision: str = "fp32",
        model: TransducerLoss | None = None,
        recursion: str = "auto",
    ) -> Step:
        """With a model of its own, or that of another step of the same part and inputs."""
        if model is None:
            model = TransducerLoss(inputs, has_simple=part in ("whole", "simple"))
        model.k2 = patched_module() if ARMS[arm].uses_installed else k2_of_2025
        return cls(arm, part, inputs, model, workspace_mib, precision, recursion=recursion)

    @property
    def last_ranges(self) -> Tensor | None:
        return self.model.last_ranges

    def compute(self) -> Tensor:
        method = ARMS[self.arm].site_method
        self.begin()
        return self.forward_and_backward(lambda: self.model(self.inputs, self.part, method))

    def check(self) -> None:
        arm = ARMS[self.arm]
        has_simple = self.part in ("whole", "simple")
        if arm.is_routed:
            self.check_counts(
                arm.label,
                losses_routed=int(self.part != "simple"),
                simple_losses_deferred=int(has_simple and arm.records_model),
                materialised={},
            )

    def applied(self) -> contextlib.AbstractContextManager[None]:
        arm = ARMS[self.arm]
        if not arm.is_routed:
            return contextlib.nullcontext()
        options: dict[str, Any] = {
            "adjoint_tolerance": arm.adjoint_tolerance,
            "recursion": self.recursion,
            "engine": arm.engine,
        }
        if self.workspace_mib is not None:
            options["workspace_mib"] = self.workspace_mib
        if arm.records_model and self.part in ("whole", "simple"):
            options["model"] = self.model
        return panda_icefall.patched(**options)
