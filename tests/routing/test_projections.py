"""A recorded projection is a tensor to everybody but the simple loss, and only while applied."""

import contextlib
import copy
import gc
import io
import pickle
import weakref

import counted
import pytest
import torch
import toy
import toy_simple
from torch import nn

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.routing import PandaError, recording_projections, suspended
from panda_icefall.routing.projections import DeferredProjection


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0.5

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def in_place(am):
    am.mul_(torch.ones(toy.T, 1))
    return am


def through_an_alias(am):
    other = am.contiguous()
    other += torch.ones(toy.T, 1)
    return am


OTHER_USES = {
    "__mul__": lambda am: am * torch.ones(toy.T, 1),
    "add": lambda am: torch.add(am, torch.ones(1, toy.T, toy.C)),
    "exp": lambda am: (am * 2).exp(),
    "softmax": lambda am: am.softmax(-1),
    "__getitem__": lambda am: am[:, :, torch.arange(toy.C)],
    "cat": lambda am: torch.cat([am, am], dim=1)[:, : toy.T],
    "linear": lambda am: nn.functional.linear(am, torch.eye(toy.C).to(am.dtype)),
    "detach": lambda am: am + am.detach(),
    "mT": lambda am: am.mT.mT,
    "mul_": in_place,
    "__iadd__": through_an_alias,
    "Halved": lambda am: Halved.apply(am),
}


@pytest.mark.parametrize("operation", OTHER_USES)
def test_any_other_use_gets_the_tensor_and_is_counted(k2, caplog, operation):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)

    def run():
        return toy_simple.loss_and_gradients(
            k2, model, data, lambda am, lm: (OTHER_USES[operation](am), lm)
        )

    dense = run()
    with counted.deferred(model, 2, materialised=None):  # of lm at least the tensor never is
        ours = run()
        run()
    status = panda_icefall.status()
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-13)
    assert status.materialised[f"simple_am_proj: {operation}"] >= 2
    assert not any(name.startswith("simple_lm_proj") for name in status.materialised)
    assert caplog.text.count(f"simple_am_proj: {operation} needs the projection's tensor") == 1


def test_a_look_at_it_beside_the_loss_is_right_on_both_sides(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)

    def run():
        am, lm = model.projections(data)
        loss = toy_simple.smoothed_loss(k2, am, lm, data) + 0.1 * am.square().mean()
        return torch.autograd.grad(loss, [data.am, *model.parameters()])

    dense = run()
    with counted.deferred(model, materialised={"simple_am_proj: square": 1}):
        routed = run()
    torch.testing.assert_close(routed, dense, rtol=1e-11, atol=1e-13)


def test_it_looks_like_the_tensor_it_stands_for(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with panda_icefall.patched(model=model):
        am, lm = model.projections(data)
        assert isinstance(am, DeferredProjection)
        assert (am.shape, am.ndim, am.dim(), am.size(2)) == ((toy.B, toy.T, toy.C), 3, 3, toy.C)
        assert (lm.shape, lm.numel()) == ((toy.B, toy.S + 1, toy.C), toy.B * (toy.S + 1) * toy.C)
        assert (am.dtype, am.device.type, am.is_cuda) == (torch.float32, "cpu", False)
        assert am.requires_grad
        assert am.float() is am.to(torch.float32) is am.contiguous() is am
        assert am.clone() is not am
        assert panda_icefall.status().materialised == {}
        with torch.no_grad():
            assert not model.projections(data)[0].requires_grad
        with pytest.raises(
            AttributeError, match=r"'DeferredProjection' .* has no attribute 'no_su"
        ):
            am.no_such_attribute  # noqa: B018


def test_a_clone_is_independent_of_what_happens_to_the_other(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)

    def between(am, lm):
        copied = am.clone()
        copied.mul_(3.0)
        return am, lm

    dense = model(k2, data)
    with counted.deferred(model):
        torch.testing.assert_close(model(k2, data, between), dense, rtol=1e-12, atol=0)


@pytest.mark.parametrize("which", ["input", "weight"])
def test_what_a_projection_read_must_not_change_before_the_loss(k2, which):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    encoded = torch.ones(toy.B, toy.T, toy_simple.D_AM)
    made = {"simple_am_proj: sum": 1}
    with counted.deferred(model, 0, materialised=made), torch.no_grad():
        am, lm = model.simple_am_proj(encoded), model.projections(data)[1]
        (encoded if which == "input" else model.simple_am_proj.weight).zero_()
        with pytest.raises(
            PandaError, match="that a projection to classes read was changed in place"
        ):
            toy_simple.smoothed_loss(k2, am, lm, data)
        with pytest.raises(PandaError, match="changed in place before the loss"):
            am.sum()


@pytest.mark.parametrize("order", [1, -1])
def test_only_one_recorded_projection_stays_one(k2, order):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)

    def run():
        found = model.projections(data)[::order]
        with panda_icefall.patched():
            plain = found[1] * torch.ones(found[1].shape)
        loss = toy_simple.smoothed_loss(k2, *(found[0], plain)[::order], data)
        leaves = [data.am, data.lm, *model.parameters()]
        return loss.detach(), torch.autograd.grad(loss, leaves)

    dense = run()
    operation = f"simple_{'lm' if order == 1 else 'am'}_proj: __mul__"
    with counted.deferred(model, materialised={operation: 1}):
        ours = run()
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-13)


def test_projections_of_another_grad_mode_become_tensors(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    reason = "loss in another grad mode than the projections"
    materialised = {f"simple_{n}_proj: {reason}": 1 for n in ("am", "lm")}
    with counted.deferred(model, of_tensors=1, materialised=materialised):
        with torch.no_grad():
            am, lm = model.projections(data)
        assert not k2.rnnt_loss_smoothed(lm, am, data.symbols, 0).requires_grad
        am = model.projections(data)[0]
        toy_simple.smoothed_loss(k2, am, lm, data).backward()
    assert model.simple_am_proj.weight.grad is not None
    assert model.simple_lm_proj.weight.grad is None


@pytest.mark.parametrize("half", ["am", "lm"])
def test_only_one_of_them_may_be_rounded_by_autocast(k2, half):
    model, data = toy_simple.Transducer(), toy.batch(k2)

    def run(k2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model.projections(data)
        plain = model.projections(data)
        found = [(rounded if name == half else plain)[i] for i, name in enumerate(("am", "lm"))]
        loss = toy_simple.smoothed_loss(k2, *found, data)
        return torch.autograd.grad(loss, [data.am, data.lm, *model.parameters()])

    def errors(found):
        return [((x.double() - z).norm() / z.norm()).item() for x, z in zip(found, exact)]

    dense = run(k2)
    with counted.deferred(model):
        ours = run(k2)
    assert [grad.dtype for grad in ours] == [grad.dtype for grad in dense]
    data.am, data.lm = (t.detach().double().requires_grad_() for t in (data.am, data.lm))
    model.double()
    exact = run(rnnt)
    assert sum(errors(ours)) <= sum(errors(dense))


def test_am_and_lm_of_different_dtypes_are_left_to_k2(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with panda_icefall.patched(model=model):
        am, lm = model.projections(data)
        with pytest.raises((TypeError, RuntimeError)):
            k2.rnnt_loss_smoothed(lm, am.double(), data.symbols, 0)
        status = panda_icefall.status()
    assert status.simple_losses_routed == 0
    assert status.materialised == {
        "simple_am_proj: double": 1, "simple_lm_proj: a loss of k2": 1
    }  # fmt: skip


def test_half_logits_are_left_to_k2(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    am, lm = (tensor.detach().double() for tensor in model.projections(data))
    # k2 1.23.4 has no half kernels on a CPU; the stand-in computes them in float32.
    refused = pytest.raises((TypeError, RuntimeError))
    with panda_icefall.patched(model=model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            halves = model.projections(data)
        assert not halves[0].is_materialised
        with refused if k2 is not rnnt else contextlib.nullcontext():
            k2.rnnt_loss_smoothed(halves[1], halves[0], data.symbols, 0)
        status = panda_icefall.status()
        k2.rnnt_loss_smoothed(lm, am, data.symbols, 0)
    assert (panda_icefall.status() - status).simple_losses_of_tensors == 1
    assert status.simple_losses_dense == 1
    assert set(status.materialised) == {
        f"simple_{name}_proj: not cast to float32" for name in ("am", "lm")
    }


def test_a_backward_hook_on_a_projection_sees_its_gradient(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    seen = []
    model.simple_am_proj.register_full_backward_hook(lambda *given: seen.append(given[2][0]))
    model(k2, data).backward()
    with counted.deferred(model, materialised={"simple_am_proj: backward hook": 1}):
        model(k2, data).backward()
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-11, atol=1e-13)


def test_a_forward_hook_may_change_the_result_or_pass_it_by(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    seen = []
    model.simple_lm_proj.register_forward_hook(lambda *given: seen.append(given[2]))
    model.simple_am_proj.register_forward_hook(lambda module, given, output: output * 2)
    dense = model(k2, data)
    with counted.deferred(model):
        torch.testing.assert_close(model(k2, data), dense, rtol=1e-12, atol=0)
    assert isinstance(seen[1], DeferredProjection)


def test_tracing_sees_the_plain_layer(k2):
    model = toy_simple.Transducer()
    with panda_icefall.patched(model=model):
        x = torch.ones(1, 2, toy_simple.D_AM)
        traced = torch.jit.trace(model.simple_am_proj, x)
        assert isinstance(traced(x), torch.Tensor)
        assert panda_icefall.status().materialised == {}
    assert torch.equal(traced(x), model.simple_am_proj(x))


def test_other_inputs_than_frames_are_left_alone(k2):
    model = toy_simple.Transducer()
    with panda_icefall.patched(model=model):
        assert isinstance(model.simple_am_proj(torch.ones(2, toy_simple.D_AM)), torch.Tensor)
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            model.simple_am_proj(torch.ones(1, 2, 3))
        with pytest.raises(RuntimeError, match=r"dtype|scalar type|Double|Float"):
            model.simple_am_proj(torch.ones(1, 2, toy_simple.D_AM).double())


def test_recording_is_in_place_only_inside_its_block_and_while_applied(k2):
    model = toy_simple.Transducer()
    x = torch.ones(1, 2, toy_simple.D_AM)

    def is_recorded():
        return isinstance(model.simple_am_proj(x), DeferredProjection)

    with recording_projections(model):
        assert not is_recorded()
    with panda_icefall.patched():
        assert not is_recorded()
        with recording_projections(model):
            assert is_recorded()
            with recording_projections(model):
                assert is_recorded()
            assert is_recorded()
            with suspended():
                assert not is_recorded()
                with suspended(), recording_projections(model):
                    assert not is_recorded()
                assert not is_recorded()
            assert is_recorded()
            assert "simple_am_proj.forward" in panda_icefall.status().replaced
        assert not is_recorded()
    assert "forward" not in vars(model.simple_am_proj)


def test_a_block_ends_with_errors_and_after_revert_too(k2):
    model = toy_simple.Transducer()
    panda_icefall.apply()
    with pytest.raises(ZeroDivisionError), recording_projections(model):
        1 / 0  # noqa: B018
    assert "forward" not in vars(model.simple_am_proj)
    with recording_projections(model):
        panda_icefall.revert()
        assert "forward" not in vars(model.simple_am_proj)
    assert "forward" not in vars(model.simple_lm_proj)


def test_apply_adds_models_until_revert(k2):
    first, second = toy_simple.Transducer(), toy_simple.Transducer(seed=2)
    second.simple_lm_proj = nn.Linear(toy_simple.D_LM, toy.C)
    second.shared = first  # a module of two models is replaced once
    panda_icefall.apply(model=first)
    panda_icefall.apply(model=first)
    panda_icefall.apply(model=second)
    names = [name for name in panda_icefall.status().replaced if name.endswith("forward")]
    assert names == [f"simple_{kind}_proj.forward" for kind in ("am", "lm")] * 2
    data = toy.batch(k2)
    losses = [model(k2, data) for model in (first, second)]
    assert panda_icefall.status().simple_losses_deferred == 2
    panda_icefall.revert()
    panda_icefall.revert()
    for model, loss in zip((first, second), losses):
        assert "forward" not in vars(model.simple_am_proj)
        torch.testing.assert_close(model(k2, data), loss)


def test_a_model_that_is_none_is_refused(k2):
    with pytest.raises(TypeError, match=r"model: got dict, expected a torch\.nn\.Module"):
        panda_icefall.apply(model={})
    assert panda_icefall.status().replaced == ()


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_a_copy_has_its_own_parameters_and_its_own_forward(k2, copied):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    panda_icefall.apply(model=model)
    other = copy.deepcopy(model) if copied == "deepcopy" else pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        other.simple_am_proj.weight.mul_(2)
    loss = other(k2, data)
    assert panda_icefall.status().simple_losses_of_tensors == 1
    panda_icefall.apply(model=other)
    torch.testing.assert_close(other(k2, data), loss)
    assert panda_icefall.status().simple_losses_deferred == 1
    panda_icefall.revert()
    torch.testing.assert_close(other(k2, data), loss)
    assert abs(model(k2, data) - loss) > 1e-3
    torch.save(other.state_dict(), io.BytesIO())


def test_somebody_elses_forward_is_called_and_put_back(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    plain = model.simple_am_proj.forward
    model.simple_am_proj.forward = own = lambda x: plain(2 * x)
    dense = model(k2, data)
    with counted.deferred(model):
        torch.testing.assert_close(model(k2, data), dense)
        assert copy.deepcopy(model).simple_am_proj.forward is own
    assert model.simple_am_proj.forward is own


def test_nothing_keeps_the_graph_alive_after_a_step(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)

    def step():
        encoded = model.encoder(data.am)
        am, lm = model.simple_am_proj(encoded), model.projections(data)[1]
        toy_simple.smoothed_loss(k2, am, lm, data).backward()
        return weakref.ref(encoded)

    gc.collect()
    gc.disable()
    try:
        with counted.deferred(model):
            assert step()() is None
    finally:
        gc.enable()
