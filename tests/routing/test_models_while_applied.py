"""A model that PANDA is applied to: checkpoints, averages, decoding, hooks, compiled as a whole.

Elsewhere: copies, pickles and exports of models in test_recorded_projections.py, compiled parts in
test_compiled_joiners.py, scripted and traced joiners in test_export.py, hooks that look for what is
not finite in test_module_hooks.py, DDP in test_stand_in_semantics.py, icefall's own diagnostics and
inf checks in the matrix of tests/icefall.
"""

import contextlib
import copy
import io

import counted
import pytest
import torch
import toy
from toy_both import Model, batch, train

import panda_icefall


def assert_routed(before, steps):
    """Both losses of so many steps since a status, the simple ones without am and lm."""
    found = panda_icefall.status() - before
    assert (found.losses_routed, found.losses_dense) == (steps, 0)
    assert (found.simple_losses_deferred, found.simple_losses_dense) == (steps, 0)
    assert found.materialised == {}


@pytest.mark.parametrize("first", ["dense", "routed"])
def test_checkpoints_with_and_without_panda_are_interchangeable(k2, first, tmp_path):
    """Each goes on from the other one's with the losses of a run that never stopped."""
    routed = {"dense": [False, True], "routed": [True, False]}[first]
    whole = Model()
    expected = train(k2, whole, torch.optim.Adam(whole.parameters(), 1e-2), range(6))
    found = []
    for part, is_routed in enumerate(routed):
        model = Model(seed=5 + part)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        if part:
            saved = torch.load(tmp_path / "checkpoint.pt")
            model.load_state_dict(saved["model"], strict=True)
            optimizer.load_state_dict(saved["optimizer"])
        else:
            model.load_state_dict(Model().state_dict())
        steps = range(3 * part, 3 * part + 3)
        if is_routed:
            with panda_icefall.patched(model, adjoint_tolerance=0):
                before = panda_icefall.status()
                found += train(k2, model, optimizer, steps)
                assert_routed(before, 3)
                torch.save(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
                    tmp_path / "checkpoint.pt",
                )
        else:
            found += train(k2, model, optimizer, steps)
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict()},
                tmp_path / "checkpoint.pt",
            )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_a_state_dict_and_averages_of_the_model_are_those_of_a_plain_one(k2):
    plain, model = Model(), Model()
    content = {name: vars(module).keys() for name, module in plain.named_modules()}
    panda_icefall.apply(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    before = panda_icefall.status()
    train(k2, model, torch.optim.SGD(model.parameters(), 1e-3), range(2))
    assert_routed(before, 2)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert {name: vars(module).keys() for name, module in model.named_modules()} == content
    for x, y in zip(averaged.module.state_dict().values(), model.state_dict().values()):
        assert type(x) is torch.Tensor
        torch.testing.assert_close(x, y)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert b"panda" not in buffer.getvalue()
    # Its projections are not recorded, its joiner is: that is by what k2 gives it.
    data = batch(7)
    before = panda_icefall.status()
    loss = averaged.module(k2, data)
    found = panda_icefall.status() - before
    assert (found.losses_routed, found.simple_losses_of_tensors) == (1, 1)
    panda_icefall.revert()
    torch.testing.assert_close(loss, model(k2, batch(7)), rtol=1e-10, atol=0)


def greedy(model, data, symbols=4):
    """Some steps of decoding of the first utterance, by the joiner on tensors."""
    decoded, logits = [], []
    with torch.no_grad():
        for t in range(toy.T):
            am = data.am[:1, t].view(1, 1, 1, -1)
            lm = data.lm[:1, len(decoded) % (toy.S + 1)].view(1, 1, 1, -1)
            logits.append(model.joiner(am, lm))
            assert type(logits[-1]) is torch.Tensor
            best = int(logits[-1].argmax())
            decoded += [best] * (best != 0 and len(decoded) < symbols)
    return decoded, torch.cat(logits)


def test_decoding_after_training_is_as_without(k2):
    model, data = Model(), batch()
    panda_icefall.apply(model)
    before = panda_icefall.status()
    train(k2, model, torch.optim.SGD(model.parameters(), 1e-2), range(2))
    assert_routed(before, 2)
    before = panda_icefall.status()
    while_applied = greedy(model, data)
    assert panda_icefall.status() - before == panda_icefall.status() - panda_icefall.status()
    panda_icefall.revert()
    afterwards = greedy(model, data)
    assert while_applied[0] == afterwards[0]
    assert torch.equal(while_applied[1], afterwards[1])


def test_hooks_like_those_of_print_diagnostics_see_all_parameters(k2):
    """icefall's own, on its own models, are rows of the recipe matrix (tests/icefall)."""
    gradients, outputs = {}, {}
    for is_routed in (False, True):
        model = Model()
        for name, module in model.named_modules():
            key = (is_routed, name)
            module.register_forward_hook(lambda m, i, o, key=key: outputs.update({key: type(o)}))
        for name, parameter in model.named_parameters():
            key = (is_routed, name)
            parameter.register_hook(lambda grad, key=key: gradients.update({key: grad.clone()}))
        with counted.routed(adjoint_tolerance=0) if is_routed else contextlib.nullcontext():
            model(k2, batch()).backward()
    for name, _ in Model().named_parameters():
        torch.testing.assert_close(gradients[True, name], gradients[False, name])
    assert outputs[False, "joiner"] is torch.Tensor
    assert outputs[True, "transducer.encoder"] is torch.Tensor


@pytest.mark.skipif(
    not hasattr(torch, "compile"), reason="torch.compile is of torch 2: runs in the modern lane"
)
def test_a_compiled_model_trains_as_without(k2):
    torch._dynamo.reset()
    model = Model()
    expected = train(k2, copy.deepcopy(model), torch.optim.SGD(model.parameters(), 0.0), range(2))
    compiled = torch.compile(model, backend="eager")
    with panda_icefall.patched(model):
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        before = panda_icefall.status()
        found = train(k2, compiled, optimizer, range(2))
        assert_routed(before, 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
