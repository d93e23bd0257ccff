"""torch.compile around joiners and their parts: the same loss, recorded, whatever the shape."""

import threading

import pytest
import torch
import toy
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
    with panda_icefall.patched(adjoint_tolerance=0):
        for data in batches:
            value = loss(k2, data)
            leaves = [data.am, data.lm, *joiner.parameters()]
            routed.append((value.detach(), torch.autograd.grad(value, leaves)))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    status = panda_icefall.status()
    torch.testing.assert_close(routed, dense, rtol=1e-10, atol=1e-11)
    assert (status.losses_routed, status.losses_dense, status.materialised) == (4, 0, {})
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

    class Joiner(toy.TanhJoiner):
        def forward(self, am, lm):
            return self.output_linear(operation(am + lm))

    torch._dynamo.reset()
    torch.manual_seed(1)
    joiner, data = Joiner().double(), toy.batch(k2, torch.float64)
    dense = toy.loss_and_gradients(k2, joiner, data)
    with panda_icefall.patched(adjoint_tolerance=0):
        ours = toy.loss_and_gradients(k2, joiner, data)
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)
    assert panda_icefall.status().materialised


def test_threads_that_record_at_once_leave_the_stance_of_the_process(k2):
    torch._dynamo.reset()
    both = threading.Barrier(2)

    class Waiting(toy.TanhJoiner):
        def forward(self, am, lm):
            both.wait(timeout=60)
            return super().forward(am, lm)

    def run():
        toy.pruned_loss(k2, Waiting(), toy.batch(k2)).backward()

    with panda_icefall.patched():
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counter = torch._dynamo.testing.CompileCounter()
    torch.compile(torch.sin, backend=counter)(torch.ones(3))
    assert counter.frame_count == 1
