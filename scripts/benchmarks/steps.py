"""One training step of one method: what every benchmark runs, times and compares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

import panda_icefall
from benchmarks.inputs import LossInputs
from panda_icefall.routing import reset_counters


class TrainingStep(ABC):
    """Forward and backward of one loss with one method, from no gradients.

    Attributes:
      arm: name of the method.
      part: what is computed.
      inputs, model: what it works on.
    """

    arm: str
    part: str
    inputs: LossInputs
    model: nn.Module

    @abstractmethod
    def run(self) -> Tensor:
        """The loss, detached; the gradients are in the leaves."""

    @property
    def last_ranges(self) -> Tensor | None:
        """The band of the last run, where the step finds one."""
        return None

    def leaves(self) -> dict[str, Tensor]:
        """Everything that gets a gradient."""
        outputs = {"encoder_out": self.inputs.encoder_out, "decoder_out": self.inputs.decoder_out}
        return {**dict(self.model.named_parameters()), **outputs}

    def begin(self) -> None:
        """Forget gradients and counts of earlier runs."""
        for leaf in self.leaves().values():
            leaf.grad = None
        reset_counters()

    def gradients(self) -> dict[str, Tensor]:
        """Those of the last run by name; a leaf that the part does not read has none."""
        return {name: t.grad for name, t in self.leaves().items() if t.grad is not None}

    def check_counts(self, label: str, **expected: Any) -> None:
        """A figure of a method that was not taken would be another method's.

        Raises:
          RuntimeError: the routing counted something else.
        """
        status = panda_icefall.status()
        if {name: getattr(status, name) for name in expected} != expected:
            raise RuntimeError(f"{label}: the {self.part} loss was not routed: {status}")


def site_shares() -> tuple[float, float]:
    """Of the sites of the last routed run, the shares evaluated forward and backward; 1 if none."""
    status = panda_icefall.status()
    if not status.sites:
        return 1.0, 1.0
    return status.sites_evaluated / status.sites, status.sites_backward / status.sites
