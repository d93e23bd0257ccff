"""Joiners and models are scripted, traced and exported while applied as they are without."""

import sys
import types

import counted
import pytest
import torch
import toy
from torch import nn

import panda_icefall
from panda_icefall import rnnt


@pytest.fixture
def plain_k2(monkeypatch):
    """A module named k2 whose pruning reads no value, so that it can be traced."""

    def do_rnnt_pruning(am, lm, ranges):
        B, T, s_range = ranges.shape
        index = ranges.reshape(B, T * s_range, 1).expand(-1, -1, lm.shape[-1])
        pruned = lm.gather(1, index).reshape(B, T, s_range, lm.shape[-1])
        return am.unsqueeze(2).expand(-1, -1, s_range, -1), pruned

    module = types.ModuleType("k2")
    module.do_rnnt_pruning = do_rnnt_pruning
    for name in ("rnnt_loss_pruned", "rnnt_loss_smoothed", "rnnt_loss_simple"):
        setattr(module, name, getattr(rnnt, name))
    monkeypatch.setitem(sys.modules, "k2", module)
    yield module
    panda_icefall.revert()


class Model(nn.Module):
    def __init__(self, k2):
        super().__init__()
        torch.manual_seed(1)
        self.k2 = k2
        self.joiner = toy.TwoLinearJoiner()

    def forward(self, am, lm, ranges):
        pruned = self.k2.do_rnnt_pruning(am, lm, ranges)
        return self.joiner(*pruned)


def export(model, inputs):
    return torch.export.export(model, inputs, strict=False).module()


def make_fx(model, inputs):
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(model)(*inputs)


EXPORTS = {"trace": lambda model, inputs: torch.jit.trace(model, inputs)}
if hasattr(torch, "export"):
    EXPORTS.update(export=export, make_fx=make_fx)


@pytest.mark.parametrize("exported", EXPORTS)
def test_a_model_is_exported_with_the_operations_of_k2(plain_k2, exported):
    data, model = toy.batch(rnnt), Model(plain_k2)
    inputs = (data.am.detach(), data.lm.detach(), data.ranges)
    dense = model(*inputs)
    with panda_icefall.patched():
        torch.testing.assert_close(EXPORTS[exported](model, inputs)(*inputs), dense)
        assert panda_icefall.status().materialised == {}


@pytest.mark.parametrize("exported", ["script", *EXPORTS])
def test_a_joiner_is_exported_and_then_routes_no_less(k2, exported):
    torch.manual_seed(1)
    joiner, inputs = toy.TwoLinearJoiner(), (torch.randn(2, 3, 4, toy.X), torch.randn(toy.X))
    exports = {"script": lambda model, inputs: torch.jit.script(model), **EXPORTS}
    dense = joiner(*inputs)
    with counted.routed():
        torch.testing.assert_close(exports[exported](joiner, inputs)(*inputs), dense)
        data = toy.batch(k2)
        toy.pruned_loss(k2, joiner, data).backward()


def test_a_scripted_joiner_computes_the_logits_as_without(k2):
    torch.manual_seed(1)
    joiner, data = toy.TwoLinearJoiner().double(), toy.batch(k2, torch.float64)
    dense = toy.loss_and_gradients(k2, joiner, data)
    scripted = torch.jit.script(joiner)
    with counted.routed(0, dense=1, materialised={"scripted TwoLinearJoiner.forward": 2}):
        ours = toy.loss_and_gradients(k2, scripted, data)
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)
