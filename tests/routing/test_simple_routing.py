"""The routed simple loss is the dense one: its value, its occupations and every gradient."""

import contextlib

import counted
import numpy as np
import pytest
import torch
import toy
import toy_simple
from ranks import from_two_ranks, group_of_two
from torch import nn
from torch.nn.utils import parametrize

import panda_icefall
from panda_icefall import rnnt


def compare(k2, model, *, dtype=torch.float64, bound=1e-12, **arguments):
    """Dense k2 against deferred, on the same model and batch."""
    model, data = model.to(dtype), toy.batch(k2, dtype)
    if arguments.pop("without_boundary", False):
        data.boundary = None
    dense = toy_simple.loss_and_gradients(k2, model, data, **arguments)
    with counted.deferred(model):
        ours = toy_simple.loss_and_gradients(k2, model, data, **arguments)
    toy.assert_same(ours, dense, bound)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lm_only_scale": 0.0, "am_only_scale": 0.3},
        {"lm_only_scale": 0.2, "am_only_scale": 0.1, "reduction": "none"},
        {"rnnt_type": "modified", "reduction": "mean"},
        {"rnnt_type": "constrained"},
        {"delay_penalty": 2**-5},  # exact in k2's float32
        {"without_boundary": True},
    ],
    ids=str,
)
def test_loss_and_gradients_are_the_dense_ones(k2, arguments):
    compare(k2, toy_simple.Transducer(), **arguments)


def test_float32_differs_by_rounding_only(k2):
    compare(k2, toy_simple.Transducer(), dtype=torch.float32, bound=2e-6)


@pytest.mark.parametrize("kind", [nn.Linear, toy_simple.ScaledLinear])
@pytest.mark.parametrize("bias", [True, False])
def test_every_layer_that_calls_linear_is_deferred(k2, kind, bias):
    compare(k2, toy_simple.Transducer(kind, bias=bias))


def test_a_parametrised_weight_gets_its_gradient(k2):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = toy_simple.Transducer()
    parametrize.register_parametrization(model.simple_am_proj, "weight", Doubled())
    compare(k2, model)


def test_twins_with_a_suffix_are_found(k2):
    compare(k2, toy_simple.Transducer(suffix="_giga"))


def test_the_simple_loss_without_scales_is_routed_too(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)

    def run():
        am, lm = model.projections(data)
        loss = k2.rnnt_loss_simple(lm, am, data.symbols, 0, data.boundary, reduction="none")
        return loss.detach(), torch.autograd.grad(loss.sum(), [data.am, *model.parameters()])

    dense = run()
    with counted.deferred(model):
        toy.assert_same(run(), dense, 1e-12)


def test_occupations_are_those_of_dense_and_prune_alike(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    expected = model(k2, data, return_grad=True)
    with counted.deferred(model):
        found = model(k2, data, return_grad=True)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    (px_grad, py_grad), boundary = found[1], data.boundary
    assert px_grad.shape == (toy.B, toy.S, toy.T + 1)
    assert py_grad.shape == (toy.B, toy.S + 1, toy.T)
    ranges = [k2.get_rnnt_prune_ranges(*g, boundary, toy.S_RANGE) for g in (expected[1], found[1])]
    assert torch.equal(*ranges)


def test_ordinary_am_and_lm_are_computed_in_tiles_and_are_nothing_materialised(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    dense = toy_simple.loss_and_gradients(k2, model, data)
    with counted.deferred(None, 0, of_tensors=1):
        ours = toy_simple.loss_and_gradients(k2, model, data)
    toy.assert_same(ours, dense, 1e-12)


def test_a_small_workspace_is_passed_on_and_seconds_are_counted(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    dense = toy_simple.loss_and_gradients(k2, model, data)
    with counted.deferred(model, workspace_mib=0.005):
        toy.assert_same(toy_simple.loss_and_gradients(k2, model, data), dense, 1e-12)
        status = panda_icefall.status()
        panda_icefall.apply(workspace_mib=10 / 2**20)
        with pytest.raises(ValueError, match="workspace_bytes: got 10, expected at least"):
            model(k2, data)
    assert status.simple_forward_seconds > 0 < status.simple_backward_seconds
    assert (status.tiles_forward, status.forward_seconds) == (0, 0.0)


def test_bfloat16_autocast_is_at_least_as_exact_as_dense(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return toy_simple.loss_and_gradients(k2, model, data)

    def errors(found):
        return [((x.double() - y).norm() / y.norm()).item() for x, y in zip(found[1], exact[1])]

    dense = run()
    with counted.deferred(model):
        ours = run()
    data.am, data.lm = (t.detach().double().requires_grad_() for t in (data.am, data.lm))
    exact = toy_simple.loss_and_gradients(rnnt, model.double(), data)
    assert [g.dtype for g in ours[1]] == [g.dtype for g in dense[1]]
    assert ours[0].dtype == torch.float32
    assert abs(ours[0] - exact[0]) <= 2**-8 * exact[0]
    for mine, theirs in zip(errors(ours), errors(dense)):
        assert mine <= max(1.25 * theirs, 2**-8)


def test_a_half_model_without_autocast_is_deferred_too(k2):
    projections, data = toy_simple.Transducer().bfloat16(), toy.batch(k2, torch.bfloat16)
    dense = projections(k2, data)
    with counted.deferred(projections):
        ours = projections(k2, data)
    torch.testing.assert_close(ours, dense, rtol=2**-7, atol=0)


@pytest.mark.parametrize("frozen", ["am", "lm", "simple_am_proj.weight", "simple_lm_proj.bias"])
def test_frozen_inputs_and_parameters_disturb_no_other_gradient(k2, frozen):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    named = {"am": data.am, "lm": data.lm, **dict(model.named_parameters())}
    named[frozen].requires_grad_(False)
    leaves = [tensor for tensor in named.values() if tensor.requires_grad]
    dense = torch.autograd.grad(model(k2, data), leaves)
    with counted.deferred(model):
        routed = torch.autograd.grad(model(k2, data), leaves)
    torch.testing.assert_close(routed, dense, rtol=1e-11, atol=1e-13)


def test_one_projection_may_serve_two_losses_and_backward_may_run_twice(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    leaves = [data.am, data.lm, *model.parameters()]

    def run():
        am, lm = model.projections(data)
        loss = toy_simple.smoothed_loss(k2, am, lm, data)
        loss = loss + 0.5 * toy_simple.smoothed_loss(k2, am, lm, data, rnnt_type="modified")
        loss = loss + model(k2, data)
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        return [*first, *torch.autograd.grad(loss, leaves)]

    dense = run()
    with counted.deferred(model, 3):
        routed = run()
    torch.testing.assert_close(routed, dense, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_validation_is_routed_too(k2, mode):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    with mode():
        dense = model(k2, data, return_grad=True)
        with counted.deferred(model):
            routed = model(k2, data, return_grad=True)
    torch.testing.assert_close(routed, dense, rtol=1e-11, atol=1e-13)
    assert not routed[0].requires_grad


def test_second_derivatives_are_refused_not_wrong(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with counted.deferred(model):
        loss = model(k2, data)
        with pytest.raises(RuntimeError, match="create_graph: got True, expected False"):
            torch.autograd.grad(loss, data.am, create_graph=True)


@pytest.mark.parametrize("blank", [np.int64(0), torch.tensor(0)])
def test_integer_arguments_are_taken_as_k2_takes_them(k2, blank):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with counted.deferred(model, 2):
        expected = model(k2, data)
        am, lm = model.projections(data)
        loss = k2.rnnt_loss_smoothed(
            lm, am, data.symbols.int(), blank, 0.25, 0.0, data.boundary, reduction="sum"
        )
    assert torch.equal(loss, expected)


def train_in_process(rank, port, queue):
    """A DDP step of a rank on its own batch, dense and routed; rank 0 reports both gradients."""
    from panda_icefall.routing import hosts

    k2 = hosts.patched_module()
    with group_of_two(rank, port):
        data = toy.batch(rnnt, torch.float64, seed=rank)
        grads = []
        for is_routed in (False, True):
            model = nn.parallel.DistributedDataParallel(
                toy_simple.Transducer().double(), find_unused_parameters=True
            )
            with counted.deferred(model) if is_routed else contextlib.nullcontext():
                model(k2, data).backward()
            grads.append([p.grad.numpy() for p in model.parameters()])
        if rank == 0:
            queue.put(grads)


def test_ddp_ranks_average_the_same_gradients():
    for x, y in zip(*from_two_ranks(train_in_process)):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)
