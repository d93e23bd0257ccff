"""A recorded projection is a tensor to everybody but the simple loss, and only while applied."""

import copy
import gc
import io
import logging
import pickle
import weakref

import pytest
import torch
import toy
import toy_simple
from torch import nn

import panda_icefall
from panda_icefall.routing import PandaError, find_projections, recording_projections, suspended
from panda_icefall.routing.projections import DeferredProjection


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0.5

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def in_place(am):
    am.mul_(0.5)
    return am


def through_an_alias(am):
    other = am.contiguous()
    other += 1
    return am


OTHER_USES = {
    "__mul__": lambda am: am * 0.5,
    "add": lambda am: torch.add(am, 1.0),
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
    with panda_icefall.patched(model=model):
        ours = run()
        run()
        status = panda_icefall.status()
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-13)
    assert status.materialised[f"simple_am_proj: {operation}"] >= 2
    assert (status.simple_losses_of_tensors, status.simple_losses_deferred) == (2, 0)
    assert caplog.text.count(f"simple_am_proj: {operation} needs the projection's tensor") == 1


def test_a_look_at_it_beside_the_loss_is_right_on_both_sides(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)

    def run():
        am, lm = model.projections(data)
        loss = toy_simple.smoothed_loss(k2, am, lm, data) + 0.1 * am.square().mean()
        return torch.autograd.grad(loss, [data.am, *model.parameters()])

    dense = run()
    with panda_icefall.patched(model=model):
        routed = run()
        assert panda_icefall.status().simple_losses_deferred == 1
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
    with panda_icefall.patched(model=model):
        torch.testing.assert_close(model(k2, data, between), dense, rtol=1e-12, atol=0)


@pytest.mark.parametrize("which", ["input", "weight"])
def test_what_a_projection_read_must_not_change_before_the_loss(k2, which):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    encoded = torch.ones(toy.B, toy.T, toy_simple.D_AM)
    with panda_icefall.patched(model=model), torch.no_grad():
        am, lm = model.simple_am_proj(encoded), model.projections(data)[1]
        (encoded if which == "input" else model.simple_am_proj.weight).zero_()
        with pytest.raises(PandaError, match="that a simple projection read was changed in place"):
            toy_simple.smoothed_loss(k2, am, lm, data)
        with pytest.raises(PandaError, match="changed in place before the loss"):
            am.sum()


def test_only_one_recorded_projection_becomes_a_tensor(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    dense = model(k2, data)
    plain = model.projections(data)[1].detach()
    with panda_icefall.patched(model=model):
        loss = model(k2, data, lambda am, lm: (am, plain))
        status = panda_icefall.status()
    torch.testing.assert_close(loss, dense)
    assert status.materialised == {"simple_am_proj: only one of am and lm is recorded": 1}
    assert status.simple_losses_of_tensors == 1


def test_projections_of_another_grad_mode_or_precision_become_tensors(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with panda_icefall.patched(model=model):
        with torch.no_grad():
            am, lm = model.projections(data)
        assert not k2.rnnt_loss_smoothed(lm, am, data.symbols, 0).requires_grad
        with torch.autocast("cpu", dtype=torch.bfloat16):
            am = model.projections(data)[0]
        lm = model.projections(data)[1]
        assert am.dtype == torch.bfloat16
        toy_simple.smoothed_loss(k2, am, lm, data).backward()
        reasons = [name.partition(": ")[2] for name in panda_icefall.status().materialised]
    assert reasons == [
        *["loss in another grad mode than the projections"] * 2,
        *["am and lm of different dtypes or devices"] * 2,
    ]
    assert model.simple_am_proj.weight.grad is not None


def test_half_logits_are_left_to_k2(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    am, lm = (tensor.detach().double() for tensor in model.projections(data))
    with panda_icefall.patched(model=model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            halves = model.projections(data)
        assert not halves[0].is_materialised
        # k2 has no half kernels on a CPU, nor has the stand-in.
        with pytest.raises((TypeError, RuntimeError)):
            k2.rnnt_loss_smoothed(halves[1], halves[0], data.symbols, 0)
        status = panda_icefall.status()
        k2.rnnt_loss_smoothed(lm, am, data.symbols, 0)
    assert status.simple_losses_dense == 1
    assert set(status.materialised) == {
        f"simple_{name}_proj: am or lm not cast to float32" for name in ("am", "lm")
    }


def test_a_backward_hook_on_a_projection_sees_its_gradient(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    seen = []
    model.simple_am_proj.register_full_backward_hook(lambda *given: seen.append(given[2][0]))
    model(k2, data).backward()
    with panda_icefall.patched(model=model):
        model(k2, data).backward()
        status = panda_icefall.status()
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-11, atol=1e-13)
    assert status.materialised["simple_am_proj: backward hook"] == 1
    assert status.simple_losses_of_tensors == 1


def test_a_forward_hook_may_change_the_result_or_pass_it_by(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    seen = []
    model.simple_lm_proj.register_forward_hook(lambda *given: seen.append(given[2]))
    model.simple_am_proj.register_forward_hook(lambda module, given, output: output * 2)
    dense = model(k2, data)
    with panda_icefall.patched(model=model):
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


def test_both_kinds_have_to_be_there(caplog):
    model = toy_simple.Transducer()
    assert list(find_projections(model)) == ["simple_am_proj", "simple_lm_proj"]
    model.simple_st_lm_proj = nn.Linear(2, 3)
    assert list(find_projections(model))[2] == "simple_st_lm_proj"
    del model.simple_st_lm_proj
    wrapped = nn.Sequential(nn.Sequential(model))
    assert list(find_projections(wrapped)) == ["0.0.simple_am_proj", "0.0.simple_lm_proj"]
    del model.simple_lm_proj
    model.simple_am_proj_giga = nn.Linear(2, 3)
    assert find_projections(model) == {}
    caplog.set_level(logging.INFO)
    with panda_icefall.patched(model=model), recording_projections(model):
        assert "forward" not in vars(model.simple_am_proj)
    assert caplog.text.count("no simple_am_proj and simple_lm_proj in Transducer") == 1


def test_names_that_only_begin_alike_and_what_has_no_matrix_are_not_found():
    model = nn.Module()
    model.simple_am_projection = model.my_simple_lm_proj = nn.Linear(2, 3)
    model.simple_proj = model.simple_adam_proj = nn.Linear(2, 3)
    model.simple_am_proj, model.simple_lm_proj = nn.LayerNorm(3), nn.Identity()
    assert find_projections(model) == {}


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
    with panda_icefall.patched(model=model):
        torch.testing.assert_close(model(k2, data), dense)
        assert panda_icefall.status().simple_losses_deferred == 1
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
        with panda_icefall.patched(model=model):
            assert step()() is None
    finally:
        gc.enable()
