"""Hooks of a joiner's modules that look for tensors: what is said, what is looked at instead."""

import logging

import counted
import pytest
import torch
import toy
from torch import nn

from panda_icefall.routing.observing import blind_hooks


class Model(nn.Module):
    """A model with a joiner, as hooks name its parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.joiner = toy.TanhJoiner()

    def forward(self, k2, data):
        return toy.pruned_loss(k2, self.joiner, data)


def inf_check(model, seen):
    """icefall's --inf-check, in short."""
    for name, module in model.named_modules():

        def forward_hook(_module, _input, output, name=name):
            if isinstance(output, torch.Tensor) and not torch.isfinite(output.sum()):
                seen.append(f"{name}.output")

        def backward_hook(_module, _input, output, name=name):
            seen.append(f"{name}.grad")

        module.register_forward_hook(forward_hook)
        module.register_full_backward_hook(backward_hook)


def step(k2, model, data):
    model(k2, data).backward()


def said(caplog, words):
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


def test_it_is_said_once_by_name_that_hooks_see_no_tensor(k2, caplog):
    model, data, seen = Model(), toy.batch(k2), []
    inf_check(model, seen)
    with counted.routed(2):
        step(k2, model, data)
        step(k2, model, data)
    messages = said(caplog, "see no tensor")
    assert len(messages) == 2
    assert "forward and backward hooks of joiner.output_linear see no tensor" in messages[0]
    assert "forward and backward hooks of joiner see no tensor" in messages[1]
    with counted.routed():
        step(k2, model, data)
    assert len(said(caplog, "see no tensor")) == 4


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_the_routed_loss_reports_what_the_hooks_would_have(k2, caplog, value):
    model, data, seen = Model(), toy.batch(k2), []
    inf_check(model, seen)
    with torch.no_grad():
        model.joiner.output_linear.bias[5] = value
    with counted.routed(2):
        model(k2, data)
        model(k2, data)
    (cause,) = said(caplog, "parameters of the joiner")
    assert "the pruned loss of utterance b=0" in cause
    assert f"and of {toy.B - 1} more" in cause
    (again,) = said(caplog, "is not finite")  # the second batch
    assert "a routed pruned loss is not finite" in again
    assert "see no tensor of joiner.output_linear, joiner" in again


def test_finite_losses_are_not_reported_nor_looked_at_after_revert(k2, caplog):
    model, data = Model(), toy.batch(k2)
    inf_check(model, [])
    with counted.routed():
        model(k2, data)
    assert said(caplog, "is not finite") == []
    with torch.no_grad():
        model.joiner.output_linear.bias[5] = float("inf")
    unwatched = Model()
    unwatched.load_state_dict(model.state_dict())
    with counted.routed():
        unwatched(k2, data)
    assert said(caplog, "is not finite") == []


def test_backward_hooks_alone_are_named_alone(k2, caplog):
    model, data = Model(), toy.batch(k2)
    model.joiner.register_full_backward_hook(lambda *given: None)
    with counted.routed():
        model(k2, data)
    (message,) = said(caplog, "see no tensor")
    assert message.startswith("panda: backward hooks of joiner see")


def test_hooks_that_materialise_the_output_are_not_blind(k2, caplog):
    joiner, data, seen = toy.TanhJoiner(), toy.batch(k2), []
    joiner.register_forward_hook(lambda m, i, output: seen.append(float(output.float().sum())))
    with counted.routed(0, dense=1, materialised=None):
        toy.pruned_loss(k2, joiner, data)
    assert said(caplog, "see no tensor") == []
    assert len(seen) == 1


def test_a_joiner_that_runs_by_itself_is_named_by_its_class(k2, caplog):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    joiner.register_forward_hook(lambda *given: None)
    with counted.routed():
        toy.pruned_loss(k2, joiner, data)
    assert "hooks of TanhJoiner see" in said(caplog, "see no tensor")[0]


def test_no_hook_is_no_message(k2, caplog):
    caplog.set_level(logging.INFO)
    with counted.routed():
        Model()(k2, toy.batch(k2))
    assert caplog.records == []


def test_hooks_are_told_apart():
    module = nn.Linear(2, 3)
    assert blind_hooks(module) == []
    module.register_forward_hook(lambda *given: None)
    assert blind_hooks(module) == ["forward"]
    module.register_full_backward_hook(lambda *given: None)
    assert blind_hooks(module) == ["forward", "backward"]
