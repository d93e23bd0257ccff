"""How far methods that should give the same loss and gradients are apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.steps import TrainingStep


@dataclass(frozen=True)
class Agreement:
    """A method against the reference, on one batch.

    Attributes:
      loss: of the method, in nats.
      loss_rel: relative difference of the losses.
      grad_rel_l2: L2 norm of the difference of all gradients by that of the reference's.
      worst_grad_rel_l2: the same leaf by leaf, the largest.
      moved_frames: frames whose band is another one, as the simple losses' rounding differs; a
        loss over another band is another loss.
    """

    loss: float
    loss_rel: float
    grad_rel_l2: float
    worst_grad_rel_l2: float
    moved_frames: int


class Reference:
    """Loss, gradients and band of one step, kept to compare others with."""

    def __init__(self, step: TrainingStep) -> None:
        self.loss = float(step.run())
        self.gradients = {name: g.clone() for name, g in step.gradients().items()}
        self.ranges = step.last_ranges

    def against(self, step: TrainingStep) -> Agreement:
        """Run another method's step on the same batch and compare."""
        loss = float(step.run())
        difference, norm = {}, {}
        for name, gradient in step.gradients().items():
            reference = self.gradients[name].double()
            difference[name] = float((gradient.double() - reference).norm())
            norm[name] = float(reference.norm())
        by_leaf = [difference[name] / norm[name] for name in difference if norm[name] > 0]
        return Agreement(
            loss=loss,
            loss_rel=abs(loss - self.loss) / abs(self.loss),
            grad_rel_l2=_root_of_squares(difference) / _root_of_squares(norm),
            worst_grad_rel_l2=max(by_leaf),
            moved_frames=self._moved_frames(step.last_ranges),
        )

    def _moved_frames(self, ranges: Tensor | None) -> int:
        if ranges is None or self.ranges is None:
            return 0
        return int((ranges != self.ranges).any(dim=2).sum())


def _root_of_squares(values: dict[str, float]) -> float:
    return float(torch.tensor(list(values.values()), dtype=torch.float64).norm())
