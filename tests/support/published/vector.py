"""What a published test vector is: a loss, its inputs, and what somebody else's code gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lattice_oracle import LossKind
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Vector:
    """Numbers of another project.

    Attributes:
      source: project, file and test, or how its code was run.
      logits: float64 ``[B, T, U+1, C]``.
      targets: ``[B, U]``; logit_lengths, target_lengths: ``[B]``.
      costs: ``[B]``, nats, not reduced.
      grad: of the summed costs, ``[B, T, U+1, C]``, by the logits or, with ``is_by_log_probs``, by
        their log-softmax; None where none was published.
      cost_tolerance, grad_tolerance: absolute; how far the numbers can be trusted.
    """

    name: str
    source: str
    kind: LossKind
    logits: Tensor
    targets: Tensor
    logit_lengths: Tensor
    target_lengths: Tensor
    costs: Tensor
    grad: Tensor | None = None
    is_by_log_probs: bool = False
    cost_tolerance: float = 1e-6
    grad_tolerance: float = 1e-6

    def __str__(self) -> str:
        return self.name


def numbers(text: str, *shape: int) -> Tensor:
    """The numbers in a text, float64, in a shape."""
    return torch.tensor([float(word) for word in text.split()], dtype=torch.float64).reshape(shape)


def made_logits(*shape: int) -> Tensor:
    """Inputs of the vectors that we made with others' code: ``(37 i + 11) mod 101 / 25 - 2``."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((37 * index + 11) % 101 / 25 - 2).reshape(shape)
