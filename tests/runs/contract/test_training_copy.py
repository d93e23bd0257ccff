"""Copies of a training state belong together and leave the original alone."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from panda_icefall.runs.contract.training_copy import (
    copy_batch,
    copy_model,
    copy_training,
    keep_rng,
    unwrap_model,
)


class NamedAdam(torch.optim.Adam):
    """Keeps a field of its own, as icefall's ScaledAdam keeps its parameter names."""

    def __init__(self, params, names):
        super().__init__(params, lr=0.1)
        self.names = names

    def step(self, closure=None):
        assert self.names
        return super().step(closure)


class Noam:
    """Holds its optimizer, as icefall's does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.steps = 0

    def step(self):
        self.steps += 1
        self.optimizer.step()


def train(model, optimizer, x):
    model.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("wrap", [lambda o: o, Noam], ids=["optimizer", "holder"])
def test_a_copy_trains_as_the_original_would_and_apart_from_it(wrap):
    x = torch.randn(5, 3)
    model = nn.Linear(3, 2)
    inner = NamedAdam(model.parameters(), ["weight", "bias"])
    optimizer = wrap(inner)
    scheduler = torch.optim.lr_scheduler.StepLR(inner, 1)  # puts its own `step` on the instance
    train(model, optimizer, x)
    scheduler.step()

    copied, copied_optimizer = copy_training(model, optimizer)
    before = model.weight.detach().clone()
    train(copied, copied_optimizer, x)
    assert torch.equal(model.weight, before)
    assert not torch.equal(copied.weight, before)
    train(model, optimizer, x)
    assert torch.equal(copied.weight, model.weight)
    assert torch.equal(copied.bias, model.bias)


def test_a_copied_model_has_no_gradients_and_no_wrapper():
    model = nn.Linear(3, 2)
    model(torch.ones(1, 3)).sum().backward()
    copied = copy_model(model)
    assert copied.weight.grad is None
    assert unwrap_model(model) is model


def test_every_generator_is_put_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    with keep_rng():
        first = draw()
    assert draw() == first


def test_a_copied_batch_owns_its_tensors_and_shares_the_rest():
    cut = object()
    batch = {"inputs": torch.zeros(2), "supervisions": {"cut": [cut], "lens": (torch.ones(1),)}}
    copied = copy_batch(batch)
    copied["inputs"].add_(1)
    copied["supervisions"]["lens"][0].add_(1)
    copied["supervisions"]["more"] = 1
    assert batch["inputs"].tolist() == [0, 0]
    assert batch["supervisions"]["lens"][0].item() == 1
    assert "more" not in batch["supervisions"]
    assert copied["supervisions"]["cut"][0] is cut
