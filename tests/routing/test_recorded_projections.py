"""What is called on a projection's way: LoRA, scales, replicas, copies, exports, hooks."""

import copy
import logging
import pickle

import counted
import pytest
import torch
import torch.nn.functional as F
import toy
import toy_simple
from torch import nn

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.routing.projections import DeferredProjection

TEMPERATURE = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
PER_CLASS = nn.Parameter(torch.linspace(0.5, 2, toy.C, dtype=torch.float64))


class LoRAOfLinears(nn.Linear):
    """The low-rank part first, by F.linear, with dropout, subtracted from the layer's own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.down = nn.Linear(self.in_features, 3, bias=False)
        self.up = nn.Linear(3, self.out_features)

    def forward(self, x):
        delta = self.up(self.down(F.dropout(x, 0.3, training=True)))
        return torch.sub(F.linear(x, self.weight, self.bias), delta, alpha=0.7)


class Around(nn.Module):
    """PEFT's way: the layer inside of one that takes its name."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.base_layer = nn.Linear(in_features, out_features)
        self.lora_A = nn.Linear(in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x)) * 0.5


class MatmulLinear(nn.Linear):
    def forward(self, x):
        return x @ self.weight.t() + self.bias


def in_place(am):
    am += 0.5
    am *= TEMPERATURE
    am.div_(3)
    am -= PER_CLASS
    return am


AFTERWARDS = {
    "number": lambda am: 2 * am / 3 + 1,
    "negated": lambda am: am * -1 - 0.5,
    "temperature": lambda am: am / TEMPERATURE,
    "scale first": lambda am: TEMPERATURE * am,
    "bias first": lambda am: torch.sub(PER_CLASS, am, alpha=0.5),
    "per class": lambda am: torch.mul(am, PER_CLASS) + PER_CLASS.view(1, 1, -1),
    "added with alpha": lambda am: torch.add(am, PER_CLASS, alpha=2),
    "twice": lambda am: am + am * 0.3,
    "number in a tensor": lambda am: am * torch.full((1, 1, 1), 0.3).double(),
    "in place": in_place,
}


def compare(k2, model, between=None, materialised=counted.NOTHING):
    """Dense against deferred, with the gradients of the temperature and the scales."""
    model, data = model.double(), toy.batch(k2, torch.float64)
    leaves = [data.am, data.lm, *model.parameters(), TEMPERATURE, PER_CLASS]

    def run():
        torch.manual_seed(7)
        loss = model(k2, data, between)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        return loss.detach(), [torch.zeros(()) if g is None else g for g in grads]

    dense = run()
    with counted.deferred(model, materialised=materialised):
        ours = run()
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "kind", [toy_simple.LoRALinear, LoRAOfLinears, Around, MatmulLinear], ids=lambda k: k.__name__
)
def test_sums_of_linear_layers_are_deferred(k2, kind):
    compare(k2, toy_simple.Transducer(kind))


@pytest.mark.parametrize("name", AFTERWARDS)
def test_scales_and_shifts_are_deferred(k2, name):
    compare(k2, toy_simple.Transducer(), lambda am, lm: (AFTERWARDS[name](am), lm / 2))


def test_a_layer_without_bias_takes_one_afterwards(k2):
    model = toy_simple.Transducer(bias=False)
    compare(
        k2,
        model,
        lambda am, lm: (am + PER_CLASS, lm + am[..., :1].sum()),
        {"simple_am_proj: __getitem__": 1},
    )
    compare(k2, model, lambda am, lm: (am + PER_CLASS, lm + 1))


@pytest.mark.parametrize(
    "operation",
    [
        lambda am: am / torch.ones(toy.T, 1),
        lambda am: am + torch.ones(1, toy.T, toy.C),
        lambda am: torch.div(am, 2.0, rounding_mode="floor") + am,
        lambda am: 2.0 / (am.exp() + 1),
    ],
)
def test_other_operands_get_the_tensor(k2, operation):
    compare(k2, toy_simple.Transducer(), lambda am, lm: (operation(am), lm), None)
    assert panda_icefall.status().materialised


@pytest.mark.parametrize("kind", [toy_simple.LoRALinear, nn.Linear])
def test_under_autocast_sums_and_scales_are_at_least_as_exact_as_dense(k2, kind):
    model, data = toy_simple.Transducer(kind), toy.batch(k2)

    def run(k2, model, data):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=data.am.dtype == torch.float32):
            return toy_simple.loss_and_gradients(
                k2, model, data, lambda am, lm: (am / 0.7, lm * 1.1 + 0.3)
            )

    dense = run(k2, model, data)
    with counted.deferred(model):
        ours = run(k2, model, data)
    data.am, data.lm = (t.detach().double().requires_grad_() for t in (data.am, data.lm))
    exact = run(rnnt, model.double(), data)
    assert [g.dtype for g in ours[1]] == [g.dtype for g in dense[1]]

    def errors(found):
        return [((x.double() - z).norm() / z.norm()).item() for x, z in zip(found[1], exact[1])]

    assert sum(errors(ours)) <= sum(errors(dense))
    # So few numbers are rounded in one gradient that chance decides.
    for mine, theirs in zip(errors(ours), errors(dense)):
        assert mine <= max(2 * theirs, 2**-8)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_head_that_reads_am_once_more_leaves_lm_deferred(k2, when):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)

    def run():
        am, lm = model.projections(data)
        ctc = am.log_softmax(-1)[..., 0].mean() if when == "before" else 0
        loss = toy_simple.smoothed_loss(k2, am, lm, data)
        ctc = am.log_softmax(-1)[..., 0].mean() if when == "after" else ctc
        leaves = [data.am, data.lm, *model.parameters()]
        return loss.detach(), torch.autograd.grad(loss + 3 * ctc, leaves)

    dense = run()
    with counted.deferred(model, materialised={"simple_am_proj: log_softmax": 1}):
        ours = run()
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-12)


def test_a_replica_computes_with_its_own_weights(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    panda_icefall.apply(model=model)
    replica = model._replicate_for_data_parallel()
    for name, module in model._modules.items():
        replica._modules[name] = inner = module._replicate_for_data_parallel()
        for part, parameter in module._parameters.items():
            setattr(inner, part, parameter.detach() * 2)
    found = replica(k2, data)
    model(k2, data)
    status = panda_icefall.status()
    assert (status.simple_losses_routed, status.simple_losses_of_tensors) == (2, 1)
    panda_icefall.revert()
    torch.testing.assert_close(found, replica(k2, data))
    assert abs(found - model(k2, data)) > 1e-2


class Scriptable(nn.Module):
    """A model whose forward torch.jit.script can compile."""

    def __init__(self):
        super().__init__()
        self.simple_am_proj, self.simple_lm_proj = nn.Linear(5, 7), nn.Linear(9, 7)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.simple_am_proj(x).sum() + self.simple_lm_proj(y).sum()


EXPORTS = {
    "script": torch.jit.script,
    "trace": lambda model: torch.jit.trace(model, (torch.ones(1, 2, 5), torch.ones(1, 3, 9))),
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("export", EXPORTS)
def test_a_model_is_exported_and_copied_as_without_panda(k2, export, tmp_path):
    model, given = Scriptable(), (torch.randn(1, 2, 5), torch.randn(1, 3, 9))
    keys, content = list(model.state_dict()), set(vars(model.simple_am_proj))
    expected = model(*given)
    panda_icefall.apply(model=model)
    model(*given)
    exported = EXPORTS[export](model)
    # torch.jit.script leaves a word of its own.
    assert set(vars(model.simple_am_proj)) - {"__overloads__"} == content
    assert list(exported.state_dict()) == list(model.state_dict()) == keys
    torch.testing.assert_close(exported(*given), expected)
    panda_icefall.revert()
    torch.testing.assert_close(exported(*given), expected)


def test_a_whole_model_is_saved_and_loaded(k2, tmp_path):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    dense = model(k2, data)
    panda_icefall.apply(model=model)
    torch.save(model, tmp_path / "model.pt")
    panda_icefall.revert()
    options = {"weights_only": False} if torch.__version__ >= "2" else {}
    loaded = torch.load(tmp_path / "model.pt", **options)
    torch.testing.assert_close(loaded(k2, data), dense)


def test_a_float64_average_of_the_model_stays_plain(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    panda_icefall.apply(model=model)
    average = copy.deepcopy(model).to(torch.float64)
    with torch.no_grad():
        for x, y in zip(average.parameters(), model.parameters()):
            x.mul_(0.5).add_(y, alpha=0.5)
    model(k2, data)
    assert panda_icefall.status().simple_losses_deferred == 1
    assert isinstance(average.simple_am_proj(torch.ones(1, 2, 5).double()), torch.Tensor)


@pytest.mark.skipif(
    not hasattr(torch, "compile"), reason="torch.compile is of torch 2: runs in the modern lane"
)
def test_a_compiled_projection_is_deferred(k2):
    model = toy_simple.Transducer()
    model.simple_am_proj = torch.compile(model.simple_am_proj, backend="eager")
    compare(k2, model)


def inf_check(model, seen):
    """As icefall's: both kinds of hooks on every module, which look for tensors."""
    for name, module in model.named_modules():

        def forward_hook(_module, _input, output, name=name):
            if isinstance(output, torch.Tensor) and not torch.isfinite(output.sum()):
                seen.append(f"{name}.output")

        def backward_hook(_module, _input, grads, name=name):
            if not all(torch.isfinite(grad.sum()) for grad in grads if grad is not None):
                seen.append(f"{name}.grad")

        module.register_forward_hook(forward_hook)
        module.register_full_backward_hook(backward_hook)


def test_inf_check_hooks_on_projections_fire(k2, caplog):
    def run(use_panda):
        model, data, seen = toy_simple.Transducer(), toy.batch(k2), []
        inf_check(model, seen)
        with torch.no_grad():
            model.simple_am_proj.bias[3] = torch.inf
        if use_panda:
            panda_icefall.apply(model=model)
        model(k2, data).backward()
        return seen

    dense = run(False)
    assert "simple_am_proj.output" in dense
    assert run(True) == dense
    assert panda_icefall.status().simple_losses_of_tensors == 1
    assert panda_icefall.status().materialised == {
        f"simple_{name}_proj: backward hook": 1 for name in ("am", "lm")
    }


def test_a_forward_hook_that_sees_no_tensor_is_named_once(k2, caplog):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    model.simple_am_proj.register_forward_hook(lambda *given: None)
    with torch.no_grad():
        model.simple_am_proj.bias[3] = torch.inf
    caplog.set_level(logging.WARNING)
    with counted.deferred(model, 2):
        for _ in range(2):
            model(k2, data)
    messages = [record.getMessage() for record in caplog.records]
    (said,) = (m for m in messages if "see no tensor: its output is recorded" in m)
    assert "forward hooks of simple_am_proj" in said
    assert sum("the simple loss of utterance b=0" in m for m in messages) == 1
    assert sum("a routed simple loss is not finite" in m for m in messages) == 1


def test_a_hook_of_every_module_counts_as_one_of_the_projection(k2):
    model, data, seen = toy_simple.Transducer().double(), toy.batch(k2, torch.float64), []
    handle = nn.modules.module.register_module_full_backward_hook(
        lambda module, *_: seen.append(module)
    )
    try:
        with panda_icefall.patched(model=model):
            model(k2, data).backward()
            assert panda_icefall.status().simple_losses_of_tensors == 1
    finally:
        handle.remove()
    assert model.simple_am_proj in seen
    assert model.simple_lm_proj in seen


def test_other_names_are_recorded_by_keyword(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    model.joint = nn.Module()
    model.joint.am_proj, model.lm_proj = model.simple_am_proj, model.simple_lm_proj
    am_proj, lm_proj = model.simple_am_proj, model.simple_lm_proj
    del model.simple_am_proj, model.simple_lm_proj
    with panda_icefall.patched(model=model, projections={"am": "am_proj", "lm": "lm_proj"}):
        am, lm = am_proj(model.encoder(data.am)), lm_proj(model.decoder(data.lm))
        assert isinstance(am, DeferredProjection)
        toy_simple.smoothed_loss(k2, am, lm, data)
        assert panda_icefall.status().simple_losses_deferred == 1
        assert "joint.am_proj.forward" in panda_icefall.status().replaced
    with pytest.raises(ValueError, match=r"got lm='m_proj'.* such as joint.am_proj, lm_proj"):
        panda_icefall.apply(model=model, projections={"lm": "m_proj"})
    assert panda_icefall.status().replaced == ()
    with pytest.raises(ValueError, match=r"projections: got \{'pm': 'x'\}"):
        panda_icefall.apply(projections={"pm": "x"})


class TurnedLinear(nn.Linear):
    def forward(self, x):
        return -super().forward(x).masked_fill(torch.arange(self.out_features) == 3, -9.0)


def test_a_projection_that_works_on_its_own_result_gets_it(k2):
    model, data = toy_simple.Transducer(TurnedLinear).double(), toy.batch(k2, torch.float64)
    dense = toy_simple.loss_and_gradients(k2, model, data)
    materialised = {f"simple_{n}_proj: masked_fill": 1 for n in ("am", "lm")}
    with counted.deferred(model, 0, of_tensors=1, materialised=materialised):
        ours = toy_simple.loss_and_gradients(k2, model, data)
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)


def test_a_projection_without_a_weight_of_its_own_is_said_once(k2, caplog):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    model.simple_am_proj = nn.Sequential(model.simple_am_proj, nn.Identity())
    dense = toy_simple.loss_and_gradients(k2, model, data)
    with panda_icefall.patched():
        for _ in range(2):
            panda_icefall.apply(model)
        ours = toy_simple.loss_and_gradients(k2, model, data)
        assert panda_icefall.status().simple_losses_deferred == 1  # lm
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)
    assert caplog.text.count("simple_am_proj of Transducer has no weight [C, D] of its own") == 1
