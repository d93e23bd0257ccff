"""A toy model with both losses of a recipe, and its training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import toy
import toy_simple
from torch import nn

from panda_icefall import rnnt


class Model(nn.Module):
    """Both losses of a recipe: simple projections, and a joiner on pruned ranges."""

    def __init__(self, seed=1):
        super().__init__()
        self.transducer = toy_simple.Transducer(seed=seed)
        self.joiner = toy.TanhJoiner()
        self.double()

    def forward(self, k2, data):
        simple = self.transducer(k2, data)
        return 0.5 * simple + toy.pruned_loss(k2, self.joiner, data)


def batch(seed: int = 0) -> toy.Batch:
    """In float64; of a step, its own."""
    return toy.batch(rnnt, torch.float64, seed)


def train(
    k2: Any, model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]
) -> list[float]:
    """The losses of so many steps, on batches of their own."""
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = model(k2, batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
