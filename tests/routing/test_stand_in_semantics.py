"""Where a recorded tensor could silently differ from the real one: aliases, custom functions,
late reads, graphs kept alive. Each case is compared with the dense run of the same lines."""

import contextlib
import dataclasses
import gc
import weakref

import counted
import numpy as np
import pytest
import torch
import toy
from ranks import from_two_ranks, group_of_two
from torch import nn
from torch.utils.checkpoint import checkpoint
from toy_joiner import compare

import panda_icefall
from panda_icefall.routing import PandaError, suspended


class DoubleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class DoubleGradientOfItself(DoubleGradient):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)


@pytest.mark.parametrize("function", [DoubleGradient, DoubleGradientOfItself])
def test_custom_autograd_functions_keep_their_backward(k2, function):
    def hidden(am, lm):
        return torch.tanh(function.apply(am + lm))

    compare(k2, hidden, materialised={function.__name__: 1})


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_inside_the_joiner_keeps_every_gradient(k2, use_reentrant):
    def hidden(am, lm):
        return checkpoint(lambda a, b: torch.tanh(a + b), am, lm, use_reentrant=use_reentrant)

    torch.manual_seed(1)
    joiner, data = toy.HiddenJoiner(hidden).double(), toy.batch(k2, torch.float64)

    def run():
        leaves = [data.am, data.lm, *joiner.parameters()]
        for leaf in leaves:
            leaf.grad = None
        toy.pruned_loss(k2, joiner, data).backward()
        return [leaf.grad.clone() for leaf in leaves]

    dense = run()
    materialised = {"CheckpointFunction": 2} if use_reentrant else {}
    with counted.routed(materialised=materialised, adjoint_tolerance=0):
        routed = run()
    for x, y in zip(routed, dense):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


def clone_then_change_the_copy(am, lm):
    x = am + lm
    y = x.clone()
    y.mul_(3)
    return torch.tanh(x) + torch.tanh(y)


def contiguous_copy_of_am(am, lm):
    copy = am.contiguous()
    copy += 1.5
    return torch.tanh(am * copy + lm)


def change_through_an_alias(am, lm):
    x = am + lm
    y = x
    y += 1.5
    y *= 0.5
    y -= 0.1
    y /= 2.0
    return torch.tanh(x)


def change_in_a_function(am, lm):
    def scale(t):
        t *= 2

    x = am + lm
    scale(x)
    return torch.tanh(x)


def reverse_and_unary_operators(am, lm):
    return torch.tanh(1.0 - (+am) - (-lm) / 2 + 3 * am)


def the_same_input_twice(am, lm):
    return torch.tanh(torch.add(am, lm, alpha=0.5)) * torch.sigmoid(am) + lm


def expand_to_the_same_shape(am, lm):
    return torch.tanh((am + lm).expand(-1, -1, -1, -1).view(-1, toy.T, toy.S_RANGE, toy.X))


@pytest.mark.parametrize(
    "hidden",
    [
        clone_then_change_the_copy,
        contiguous_copy_of_am,
        change_through_an_alias,
        change_in_a_function,
        reverse_and_unary_operators,
        the_same_input_twice,
        expand_to_the_same_shape,
    ],
)
def test_aliases_copies_and_operators_behave_as_on_tensors(k2, hidden):
    compare(k2, hidden)


@pytest.mark.parametrize(
    "shape",
    [(toy.B, 1, 1, toy.X), (toy.T, 1, toy.X), (1,), (), (toy.B, toy.T, 1, 1), (1, 1, 1, toy.X)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bool])
def test_operands_broadcast_as_on_tensors(k2, shape, dtype):
    operand = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    operand = operand > 0.3 if dtype == torch.bool else operand
    compare(k2, lambda am, lm: torch.tanh((am + lm) * operand))


def test_an_in_place_result_keeps_its_dtype(k2):
    def hidden(am, lm):
        x = (am + lm).bfloat16()
        x.mul_(torch.full((toy.X,), 1.003))
        return torch.tanh(x).float()

    compare(k2, hidden, dtype=torch.float32, bound=2e-2)


def test_an_operand_changed_between_joiner_and_loss_is_refused(k2):
    data, shift = toy.batch(k2), torch.ones(toy.X)
    joiner = toy.HiddenJoiner(lambda am, lm: torch.tanh(am + lm + shift))
    with counted.routed(0):
        logits = joiner(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges))
        shift.zero_()
        with pytest.raises(PandaError, match="changed in place before the loss"):
            k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)


def test_an_lm_with_too_few_states_is_refused(k2):
    data = toy.batch(k2)
    short = data.lm[:, : toy.S].detach()
    with counted.routed(0):
        logits = toy.TanhJoiner()(*k2.do_rnnt_pruning(data.am, short, data.ranges))
        with pytest.raises(
            ValueError, match=r"lm: got 6 states for symbols .* expected S \+ 1 = 7"
        ):
            k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)


def test_pruning_with_ranges_that_leave_lm_never_reads_another_utterance(k2):
    data = toy.batch(k2)
    with panda_icefall.patched():
        logits = toy.TanhJoiner()(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges + 3))
        with pytest.raises(ValueError, match="every index must lie inside the table"):
            k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)
        _, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges + 3)
        with pytest.raises((IndexError, RuntimeError), match=r"index|range"):
            lm.materialise("test")


@pytest.mark.parametrize("materialises", [False, True])
def test_nothing_keeps_the_graph_alive_after_a_step(k2, materialises):
    operation = (lambda x: torch.flip(x, (-1,))) if materialises else torch.tanh
    joiner, data = toy.HiddenJoiner(lambda am, lm: operation(am + lm)), toy.batch(k2)

    def step():
        encoder_out, lm = data.am * 1.0, data.lm * 1.0
        moved = dataclasses.replace(data, am=encoder_out, lm=lm)
        toy.pruned_loss(k2, joiner, moved).backward()
        return weakref.ref(encoder_out)

    gc.collect()
    gc.disable()
    try:
        with counted.routed(materialised={"flip": 1} if materialises else {}):
            assert step()() is None
    finally:
        gc.enable()


def test_a_held_loss_frees_its_inputs_after_backward(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    with counted.routed():
        data.am = data.am * 1.0
        loss = toy.pruned_loss(k2, joiner, data)
        kept = weakref.ref(data.am)
        loss.backward()
        data.am = None
        gc.collect()
        assert kept() is None


def test_requires_grad_is_that_of_the_inputs(k2):
    data = toy.batch(k2)
    with panda_icefall.patched():
        am, lm = k2.do_rnnt_pruning(data.am.detach(), data.lm.detach(), data.ranges)
        assert not (am + lm).requires_grad
        assert nn.Linear(toy.X, 3)(am + lm).requires_grad


@pytest.mark.parametrize("frozen", ["am", "lm", "output_linear.weight", "inner_linear.weight"])
def test_frozen_inputs_and_parameters_get_no_gradient_and_disturb_no_other(k2, frozen):
    torch.manual_seed(1)
    joiner, data = toy.TwoLinearJoiner().double(), toy.batch(k2, torch.float64)
    named = {"am": data.am, "lm": data.lm, **dict(joiner.named_parameters())}
    named[frozen].requires_grad_(False)
    leaves = [t for t in named.values() if t.requires_grad]
    dense = torch.autograd.grad(toy.pruned_loss(k2, joiner, data), leaves)
    with counted.routed(adjoint_tolerance=0):
        routed = torch.autograd.grad(toy.pruned_loss(k2, joiner, data), leaves)
    for x, y in zip(routed, dense):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


def test_two_losses_in_one_graph_and_backward_twice(k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)

    def run():
        loss = toy.pruned_loss(k2, joiner, data) + 0.5 * toy.pruned_loss(k2, joiner, data)
        leaves = [data.am, data.lm, *joiner.parameters()]
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        return [*first, *torch.autograd.grad(loss, leaves)]

    dense = run()
    with counted.routed(2, adjoint_tolerance=0):
        routed = run()
    for x, y in zip(routed, dense):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("blank", [np.int64(0), torch.tensor(0)])
def test_integer_arguments_are_taken_as_k2_takes_them(k2, blank):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    with counted.routed(2):
        expected = toy.pruned_loss(k2, joiner, data)
        am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        loss = k2.rnnt_loss_pruned(
            joiner(am, lm), data.symbols.int(), data.ranges, blank, data.boundary, reduction="sum"
        )
    assert torch.equal(loss, expected)


def test_statistics_under_inference_mode_do_not_spoil_the_joiner(k2):
    def hidden(am, lm):
        x = am + lm
        with torch.inference_mode():
            x.abs().mean()
        return torch.tanh(x)

    compare(k2, hidden, materialised={"abs": 1})


@pytest.mark.parametrize(
    "view",
    [
        lambda x: torch.cat([x, x], dim=-1).chunk(2, dim=-1)[0],
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x.reshape(-1, toy.X).view(x.shape),
    ],
    ids=["chunk", "squeeze", "reshape"],
)
def test_views_are_recorded_under_inference_mode(k2, view):
    torch.manual_seed(1)
    joiner, data = toy.HiddenJoiner(lambda am, lm: view(am + lm).tanh()).double(), toy.batch(k2)
    data.am, data.lm = data.am.double(), data.lm.double()
    dense = toy.pruned_loss(k2, joiner, data)
    with counted.routed(), torch.inference_mode():
        torch.testing.assert_close(toy.pruned_loss(k2, joiner, data), dense, rtol=1e-12, atol=0)


def test_an_infinite_logit_shows_in_the_gradients_as_in_dense(k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)
    with torch.no_grad():
        joiner.output_linear.bias[5] = float("inf")
    dense = toy.loss_and_gradients(k2, joiner, data, reduction="none")
    with counted.routed():
        routed = toy.loss_and_gradients(k2, joiner, data, reduction="none")
    assert torch.equal(routed[0].isfinite(), dense[0].isfinite())
    assert dense[1][2].isnan().any()
    assert routed[1][2].isnan().any()


def test_revert_inside_suspended_is_final(k2):
    original = k2.rnnt_loss_pruned
    panda_icefall.apply()
    with suspended():
        panda_icefall.revert()
    assert k2.rnnt_loss_pruned is original
    assert panda_icefall.status().replaced == ()


def test_function_apply_is_put_back(k2):
    before = vars(torch.autograd.Function).get("apply")
    with panda_icefall.patched():
        assert vars(torch.autograd.Function)["apply"] is not before
    assert vars(torch.autograd.Function).get("apply") is before


def train_in_process(rank, port, queue):
    """A DDP step of a rank on its own half of the batch, dense and routed; rank 0 reports both."""
    from panda_icefall import rnnt
    from panda_icefall.routing import hosts

    k2 = hosts.patched_module()
    with group_of_two(rank, port):
        data = toy.batch(rnnt, torch.float64, seed=rank)
        grads = []
        for applied in (contextlib.nullcontext(), counted.routed(adjoint_tolerance=0)):
            torch.manual_seed(1)
            model = nn.parallel.DistributedDataParallel(toy.TwoLinearJoiner().double())
            with applied:
                toy.pruned_loss(k2, model, data).backward()
            grads.append([p.grad.numpy() for p in model.parameters()])
        if rank == 0:
            queue.put(grads)


def test_ddp_ranks_average_the_same_gradients():
    for x, y in zip(*from_two_ranks(train_in_process)):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-12)
