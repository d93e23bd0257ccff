"""torch.compile around joiners and their parts: the same loss, recorded, whatever the shape."""

import threading

import counted
import pytest
import torch
import toy
import toy_joiner
from torch import nn

import panda_icefall

pytestmark = pytest.mark.skipif(
    not hasattr(torch, "compile"), reason="torch.compile is of torch 2: runs in the modern lane"
)


def compiled_joiner(joiner):
    compiled = torch.compile(joiner, backend="inductor")
    return lambda k2, data: toy.pruned_loss(k2, compiled, data)


def compiled_in_place(joiner):
    joiner.compile(backend="inductor")
    return lambda k2, data: toy.pruned_loss(k2, joiner, data)


def compiled_part(joiner):
    joiner.inner_linear = torch.compile(joiner.inner_linear, backend="inductor")
    return lambda k2, data: toy.pruned_loss(k2, joiner, data)


def compiled_around(joiner):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.joiner = joiner

        def forward(self, k2, data):
            return toy.pruned_loss(k2, self.joiner, data)

    return torch.compile(Around(), backend="eager")


def of_length(k2, length):
    data = toy.batch(k2, torch.float64)
    data.boundary = data.boundary.clone()
    data.boundary[:, 3].clamp_(max=length)
    data.am = data.am.detach()[:, :length].requires_grad_()
    data.ranges = data.ranges[:, :length].contiguous()
    return data


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiled", [compiled_joiner, compiled_in_place, compiled_part, compiled_around]
)
def test_compiled_joiners_are_recorded_at_every_length(k2, compiled):
    torch._dynamo.reset()
    torch.manual_seed(1)
    joiner = toy.TwoLinearJoiner().double()
    batches = [of_length(k2, length) for length in (11, 9, 10, 8)]
    dense = [toy.loss_and_gradients(k2, joiner, data) for data in batches]
    loss, routed, graphs = compiled(joiner), [], []
    with counted.routed(4, adjoint_tolerance=0):
        for data in batches:
            value = loss(k2, data)
            leaves = [data.am, data.lm, *joiner.parameters()]
            routed.append((value.detach(), torch.autograd.grad(value, leaves)))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    torch.testing.assert_close(routed, dense, rtol=1e-10, atol=1e-11)
    assert len(set(graphs)) == 1, "compiled again for another length"


def test_a_compiled_encoder_is_one_graph_while_applied(k2):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encoder = nn.Sequential(nn.Linear(toy.X, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 2)))
    x = torch.randn(3, toy.X)
    with panda_icefall.patched():
        compiled = torch.compile(encoder, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), encoder(x))
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_function_that_needs_tensors_gets_them(k2):
    @torch.compile(backend="eager")
    def operation(x):
        assert isinstance(x, torch.Tensor)
        return torch.tanh(x) * 2

    torch._dynamo.reset()
    materialised = {"HiddenJoiner, which raised AssertionError": 2}
    toy_joiner.compare(
        k2,
        lambda am, lm: operation(am + lm),
        routed=0,
        materialised=materialised,
        bound=1e-10,
    )


def test_threads_that_record_at_once_leave_the_stance_of_the_process(k2):
    torch._dynamo.reset()
    both = threading.Barrier(2)

    class Waiting(toy.TanhJoiner):
        def forward(self, am, lm):
            both.wait(timeout=60)
            return super().forward(am, lm)

    def run():
        toy.pruned_loss(k2, Waiting(), toy.batch(k2)).backward()

    with counted.routed(2):
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counter = torch._dynamo.testing.CompileCounter()
    torch.compile(torch.sin, backend=counter)(torch.ones(3))
    assert counter.frame_count == 1
