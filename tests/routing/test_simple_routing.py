"""The routed simple loss is the dense one: its value, its occupations and every gradient."""

import numpy as np
import pytest
import torch
import toy
import toy_simple
from ranks import from_two_ranks, group_of_two
from torch import nn
from torch.nn.utils import parametrize

import panda_icefall
from panda_icefall.losses import k2_functions


def assert_same(ours, dense, bound=1e-12):
    torch.testing.assert_close(ours[0], dense[0], rtol=bound, atol=0)
    assert len(ours[1]) == len(dense[1])
    for x, y in zip(ours[1], dense[1]):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        assert (x - y).norm() <= bound * y.norm()


def compare(k2, model, *, deferred=1, of_tensors=0, dtype=torch.float64, bound=1e-12, **arguments):
    """Dense k2 against routed, on the same model and batch."""
    model, data = model.to(dtype), toy.batch(k2, dtype)
    if arguments.pop("without_boundary", False):
        data.boundary = None
    dense = toy_simple.loss_and_gradients(k2, model, data, **arguments)
    with panda_icefall.patched(model=model):
        ours = toy_simple.loss_and_gradients(k2, model, data, **arguments)
        status = panda_icefall.status()
    assert_same(ours, dense, bound)
    assert (status.simple_losses_deferred, status.simple_losses_of_tensors) == (
        deferred,
        of_tensors,
    )
    assert status.simple_losses_dense == 0
    return status


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
    assert compare(k2, toy_simple.Transducer(), **arguments).materialised == {}


def test_float32_differs_by_rounding_only(k2):
    compare(k2, toy_simple.Transducer(), dtype=torch.float32, bound=2e-6)


@pytest.mark.parametrize("kind", [nn.Linear, toy_simple.ScaledLinear])
@pytest.mark.parametrize("bias", [True, False])
def test_every_layer_that_calls_linear_is_deferred(k2, kind, bias):
    assert compare(k2, toy_simple.Transducer(kind, bias=bias)).materialised == {}


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
    with panda_icefall.patched(model=model):
        assert_same(run(), dense)
        assert panda_icefall.status().simple_losses_deferred == 1


def test_occupations_are_those_of_dense_and_prune_alike(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    expected = model(k2, data, return_grad=True)
    with panda_icefall.patched(model=model):
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
    with panda_icefall.patched():
        ours = toy_simple.loss_and_gradients(k2, model, data)
        status = panda_icefall.status()
    assert_same(ours, dense)
    assert (status.simple_losses_routed, status.simple_losses_of_tensors) == (1, 1)
    assert status.materialised == {}


def test_a_small_workspace_is_passed_on_and_seconds_are_counted(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    dense = toy_simple.loss_and_gradients(k2, model, data)
    with panda_icefall.patched(workspace_mib=0.005, model=model):
        assert_same(toy_simple.loss_and_gradients(k2, model, data), dense)
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
    with panda_icefall.patched(model=model):
        ours = run()
        assert panda_icefall.status().simple_losses_deferred == 1
        assert panda_icefall.status().materialised == {}
    data.am, data.lm = (t.detach().double().requires_grad_() for t in (data.am, data.lm))
    exact = toy_simple.loss_and_gradients(k2_functions, model.double(), data)
    assert [g.dtype for g in ours[1]] == [g.dtype for g in dense[1]]
    assert ours[0].dtype == torch.float32
    assert abs(ours[0] - exact[0]) <= 2**-8 * exact[0]
    for mine, theirs in zip(errors(ours), errors(dense)):
        assert mine <= max(1.25 * theirs, 2**-8)


def test_a_half_model_without_autocast_is_deferred_too(k2):
    projections, data = toy_simple.Transducer().bfloat16(), toy.batch(k2, torch.bfloat16)
    dense = projections(k2, data)
    with panda_icefall.patched(model=projections):
        ours = projections(k2, data)
        assert panda_icefall.status().simple_losses_deferred == 1
    torch.testing.assert_close(ours, dense, rtol=2**-7, atol=0)


@pytest.mark.parametrize("frozen", ["am", "lm", "simple_am_proj.weight", "simple_lm_proj.bias"])
def test_frozen_inputs_and_parameters_disturb_no_other_gradient(k2, frozen):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    named = {"am": data.am, "lm": data.lm, **dict(model.named_parameters())}
    named[frozen].requires_grad_(False)
    leaves = [tensor for tensor in named.values() if tensor.requires_grad]
    dense = torch.autograd.grad(model(k2, data), leaves)
    with panda_icefall.patched(model=model):
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
    with panda_icefall.patched(model=model):
        routed = run()
        assert panda_icefall.status().simple_losses_deferred == 3
    torch.testing.assert_close(routed, dense, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_validation_is_routed_too(k2, mode):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    with mode():
        dense = model(k2, data, return_grad=True)
        with panda_icefall.patched(model=model):
            routed = model(k2, data, return_grad=True)
            assert panda_icefall.status().simple_losses_deferred == 1
    torch.testing.assert_close(routed, dense, rtol=1e-11, atol=1e-13)
    assert not routed[0].requires_grad


def test_second_derivatives_are_refused_not_wrong(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with panda_icefall.patched(model=model):
        loss = model(k2, data)
        with pytest.raises(RuntimeError, match="create_graph: got True, expected False"):
            torch.autograd.grad(loss, data.am, create_graph=True)


@pytest.mark.parametrize("blank", [np.int64(0), torch.tensor(0)])
def test_integer_arguments_are_taken_as_k2_takes_them(k2, blank):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with panda_icefall.patched(model=model):
        expected = model(k2, data)
        am, lm = model.projections(data)
        loss = k2.rnnt_loss_smoothed(
            lm, am, data.symbols.int(), blank, 0.25, 0.0, data.boundary, reduction="sum"
        )
    assert torch.equal(loss, expected)


def train_in_process(rank, port, use_panda, queue):
    """One DDP step of a rank on its own batch; rank 0 reports the gradients."""
    from panda_icefall.routing import hosts

    k2 = hosts.patched_module()
    with group_of_two(rank, port):
        data = toy.batch(k2_functions, torch.float64, seed=rank)
        model = nn.parallel.DistributedDataParallel(
            toy_simple.Transducer().double(), find_unused_parameters=True
        )
        with panda_icefall.patched(model=model) if use_panda else torch.enable_grad():
            model(k2, data).backward()
            deferred = panda_icefall.status().simple_losses_deferred
        if rank == 0:
            queue.put((deferred, [p.grad.numpy() for p in model.parameters()]))


def test_ddp_ranks_average_the_same_gradients():
    found = [from_two_ranks(train_in_process, use_panda) for use_panda in (False, True)]
    assert [deferred for deferred, _ in found] == [0, 1]
    for x, y in zip(found[0][1], found[1][1]):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)
