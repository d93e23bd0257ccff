"""One training step of one method: what every benchmark runs, times and compares."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import panda_icefall
from benchmarks.inputs import LossInputs
from benchmarks.precision import autocast, float32_products
from panda_icefall.routing import reset_counters


class TrainingStep(ABC):
    """Forward and backward of one loss with one method, from no gradients.

    Attributes:
      arm: name of the method.
      part: what is computed.
      inputs, model: what it works on.
      precision: one of `precision.PRECISIONS`.
      scaled: what the loss goes through before its backward, as of a GradScaler.
    """

    arm: str
    part: str
    inputs: LossInputs
    model: nn.Module
    precision: str = "fp32"
    scaled: Callable[[Tensor], Tensor] | None = None

    def run(self) -> Tensor:
        """The loss, detached; the gradients are in the leaves.

        Raises:
          RuntimeError: the method was not taken.
        """
        with self.applied():
            loss = self.compute()
        self.check()
        return loss

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the method is in place, as it is for all of a training."""
        return contextlib.nullcontext()

    @abstractmethod
    def compute(self) -> Tensor:
        """`run` where the method is in place, unchecked: what is timed."""

    @abstractmethod
    def check(self) -> None:
        """Refuse a last run in which the method was not taken; on CUDA it waits for that run."""

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

    def forward_and_backward(self, forward: Callable[[], Tensor]) -> Tensor:
        """Forward under autocast and backward outside of it, as recipes do; the loss, detached."""
        with float32_products(self.precision):
            with autocast(self.precision, self.inputs.encoder_out.device):
                loss = forward()
            (loss if self.scaled is None else self.scaled(loss)).backward()
        return loss.detach()

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
