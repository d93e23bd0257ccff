"""The methods that are compared, by name, and one training step of each."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import panda_icefall
from benchmarks import full_lattice, k2_of_2025
from benchmarks.class_tiles import class_tiled_log_probs
from benchmarks.inputs import LossInputs
from benchmarks.model import LatticeMethod, SiteMethod, TransducerLoss
from benchmarks.row_tiles import checkpointed_row_log_probs, chunked_row_log_probs
from panda_icefall.routing import patched_module, reset_counters

HAS_K2 = importlib.util.find_spec("k2") is not None


@dataclass(frozen=True)
class Arm:
    """How one method computes the loss.

    Attributes:
      label: for tables; baselines say so.
      parts: what it can compute, see `model.PARTS`.
      site_method, lattice_method: see `TransducerLoss.forward`.
      is_routed: under `panda_icefall.patched`.
      uses_installed: calls the functions that are installed, k2's or the project's, and not those
        of `k2_of_2025`; those are the ones that are routed.
      records_model: with ``model=``, so that the simple loss's projections are not run either.
      adjoint_tolerance: see `panda_icefall.apply`.
      package: what must be installed.
    """

    label: str
    parts: tuple[str, ...]
    site_method: SiteMethod | None = None
    lattice_method: LatticeMethod | None = None
    is_routed: bool = False
    uses_installed: bool = False
    records_model: bool = False
    adjoint_tolerance: float | None = None
    package: str | None = None

    @property
    def is_available(self) -> bool:
        """Whether its package is installed."""
        return self.package is None or full_lattice.is_installed(self.package)


_ALL = ("whole", "simple", "pruned", "full")
_SITES = ("whole", "pruned")

# In the order of the tables; the first is what the others are compared with.
ARMS: dict[str, Arm] = {
    "dense": Arm("dense as k2 of 2025", _ALL, lattice_method=full_lattice.dense_loss),
    "k2": Arm(
        f"k2 {full_lattice.package_version('k2')}", _ALL, lattice_method=full_lattice.k2_loss,
        uses_installed=True, package="k2",
    ),
    "panda": Arm("PANDA", _ALL, is_routed=True, uses_installed=True, records_model=True),
    "panda-all-sites": Arm(
        "PANDA, tolerance 0", ("whole", "pruned", "full"), is_routed=True, uses_installed=True,
        records_model=True, adjoint_tolerance=0.0,
    ),
    "panda-no-model": Arm(
        "PANDA, real am and lm", ("whole", "simple"), is_routed=True, uses_installed=True
    ),
    "class-tiles": Arm(
        "baseline: class tiles (PANDA paper)", _SITES, site_method=class_tiled_log_probs
    ),
    "row-tiles": Arm(
        "baseline: row tiles, checkpointed (NeMo)", _SITES, site_method=checkpointed_row_log_probs
    ),
    "row-chunks": Arm(
        "baseline: chunked linear + logsumexp", _SITES, site_method=chunked_row_log_probs
    ),
    "torchaudio": Arm(
        "torchaudio", ("full",), lattice_method=full_lattice.torchaudio_loss, package="torchaudio"
    ),
    "warprnnt_numba": Arm(
        "warprnnt_numba", ("full",), lattice_method=full_lattice.warprnnt_numba_loss,
        package="warprnnt_numba",
    ),
}  # fmt: skip


def arms_of(part: str) -> list[str]:
    """Names of the methods that compute a part and are installed."""
    return [name for name, arm in ARMS.items() if part in arm.parts and arm.is_available]


@dataclass
class Step:
    """Forward and backward of one part with one method, from no gradients.

    Attributes:
      arm: name of the method.
      part: see `model.PARTS`.
      inputs, model: what it works on.
      workspace_mib: of PANDA; None: its default.
    """

    arm: str
    part: str
    inputs: LossInputs
    model: TransducerLoss
    workspace_mib: float | None = None

    @classmethod
    def make(
        cls, arm: str, part: str, inputs: LossInputs, workspace_mib: float | None = None
    ) -> Step:
        """With a model of its own."""
        k2 = patched_module() if ARMS[arm].uses_installed else k2_of_2025
        model = TransducerLoss(inputs, has_simple=part in ("whole", "simple"), k2=k2)
        return cls(arm, part, inputs, model, workspace_mib)

    def leaves(self) -> dict[str, Tensor]:
        """Everything that gets a gradient."""
        outputs = {"encoder_out": self.inputs.encoder_out, "decoder_out": self.inputs.decoder_out}
        return {**dict(self.model.named_parameters()), **outputs}

    def run(self) -> Tensor:
        """The loss, detached; the gradients are in the leaves."""
        arm = ARMS[self.arm]
        for leaf in self.leaves().values():
            leaf.grad = None
        with self._context():
            reset_counters()
            loss = self.model(self.inputs, self.part, arm.site_method, arm.lattice_method)
            loss.backward()
        if arm.is_routed:
            self._check_routed()
        return loss.detach()

    def gradients(self) -> dict[str, Tensor]:
        """Those of the last run by name; a leaf that the part does not read has none."""
        return {name: t.grad for name, t in self.leaves().items() if t.grad is not None}

    def _check_routed(self) -> None:
        """A figure of a method that was not taken would be another method's."""
        arm, status = ARMS[self.arm], panda_icefall.status()
        has_pruned, has_simple = self.part != "simple", self.part in ("whole", "simple")
        deferred = int(has_simple and arm.records_model)
        if (status.losses_routed, status.simple_losses_deferred, status.materialised) != (
            int(has_pruned),
            deferred,
            {},
        ):
            raise RuntimeError(f"{arm.label}: the {self.part} loss was not routed: {status}")

    def _context(self) -> contextlib.AbstractContextManager[None]:
        arm = ARMS[self.arm]
        if not arm.is_routed:
            return contextlib.nullcontext()
        options: dict[str, Any] = {"adjoint_tolerance": arm.adjoint_tolerance}
        if self.workspace_mib is not None:
            options["workspace_mib"] = self.workspace_mib
        if arm.records_model and self.part in ("whole", "simple"):
            options["model"] = self.model
        return panda_icefall.patched(**options)


def site_shares() -> tuple[float, float]:
    """Of the sites of the last routed run, the shares evaluated forward and backward; 1 if none."""
    status = panda_icefall.status()
    if not status.sites:
        return 1.0, 1.0
    return status.sites_evaluated / status.sites, status.sites_backward / status.sites
