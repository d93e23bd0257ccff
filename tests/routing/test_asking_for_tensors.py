"""Operations that want a real tensor get one: same values and gradients, counted by a name."""

import copy
import functools
import io
import pickle

import counted
import einops
import einops.layers.torch as einops_layers
import numpy as np
import pytest
import torch
import toy
import toy_joiner
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.utils.checkpoint import checkpoint

import panda_icefall
from panda_icefall.routing import PandaError

library = torch.library.Library("panda_asking", "DEF")
library.define("twice(Tensor x) -> Tensor")
library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")


class Swoosh(nn.Module):
    """As icefall's SwooshR where it is scripted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zero = torch.tensor(0.0, dtype=x.dtype, device=x.device)
        return torch.logaddexp(zero, x - 1.0) - 0.08 * x - 0.313261687


@torch.jit.script
def scripted_double(x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
    return x * scale


def ask(x):
    assert isinstance(x, torch.Tensor), type(x)
    return x * 2


def ask_by_is_tensor(x):
    x += 1
    if not torch.is_tensor(x):
        raise TypeError(f"got {type(x).__name__}, expected a tensor")
    return x


def with_a_tangent(x):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones(x.shape, dtype=x.dtype))
        return forward_ad.unpack_dual(dual * dual).tangent


def doubled(x):
    if has_torch_function_unary(x):
        return handle_torch_function(functools.partial(doubled), (x,), x)
    return x * 2


def shared_by_numpy(x):
    return x + torch.from_numpy(np.tanh(np.asarray(x.detach())))


def rows(x):
    assert len(x) == len(list(x)) == toy.B
    return torch.stack(list(x))


EINOPS = {
    "rearrange": lambda x: einops.rearrange(
        einops.rearrange(x, "b t s h -> h (b t) s"), "h (b t) s -> b t s h", b=toy.B
    ),
    "reduce": lambda x: x + einops.reduce(x, "b t s h -> b t s 1", "mean"),
    "repeat": lambda x: einops.repeat(x[..., 0], "b t s -> b t s h", h=toy.X),
    "einsum": lambda x: einops.einsum(x, torch.eye(toy.X).to(x.dtype), "b t s h, h k -> b t s k"),
    "pack": lambda x: einops.unpack(*einops.pack([x, x], "* h"), "* h")[1],
    "layer": einops_layers.Rearrange("b t s (h k) -> b t s (k h)", k=1),
    "EinMix": einops_layers.EinMix(
        "b t s h -> b t s k", weight_shape="h k", h=toy.X, k=toy.X
    ).double(),
}
ASKING = {
    **{f"einops {name}": operation for name, operation in EINOPS.items()},
    "scripted function": scripted_double,
    "scripted module": torch.jit.script(Swoosh()),
    "traced module": torch.jit.trace(Swoosh(), torch.ones(1, 2, 3, 7, dtype=torch.float64)),
    "isinstance": ask,
    "is_tensor": ask_by_is_tensor,
    "custom operator": lambda x: torch.ops.panda_asking.twice(x),
    "aten operator": lambda x: torch.ops.aten.tanh.default(x),
    "forward_ad": with_a_tangent,
    "partial": doubled,
    "numpy": shared_by_numpy,
    "rows": rows,
    "complex": lambda x: torch.view_as_real(torch.complex(x, x * 2)).sum(-1),
    "cast to complex": lambda x: x.to(torch.complex128).real,
    "data": lambda x: x + x.data,
    "like": lambda x: x + torch.ones_like(x) + x.new_ones(toy.X),
    "copy": lambda x: copy.copy(x.detach()) + x,
    "einsum of torch": lambda x: torch.einsum("btsh,hk->btsk", x, torch.eye(toy.X).to(x.dtype)),
    "pad_sequence": lambda x: nn.utils.rnn.pad_sequence(list(x), batch_first=True),
    "setting data": lambda x: setattr(x, "data", x.data * 2) or x,
    "as_tensor": lambda x: torch.as_tensor(x) * 2,
    "requires_grad": lambda x: x.requires_grad_() * 2,
    "parameters_to_vector": lambda x: nn.utils.parameters_to_vector([x]).view(x.shape),
}
if hasattr(torch, "func"):
    ASKING["vmap"] = torch.func.vmap(torch.tanh)
    ASKING["dlpack"] = lambda x: x + torch.from_dlpack(x.detach())
    ASKING["functional_call"] = lambda x: torch.func.functional_call(nn.Tanh(), {}, (x,))
    ASKING["compiled"] = torch.compile(lambda x: torch.tanh(x) * 2, backend="eager")


# What these give is a tensor, of which nothing is recorded: the loss is that of the logits.
ENDS_THE_RECORDING = {
    *("isinstance", "is_tensor", "scripted function", "scripted module", "traced module"),
    *("einops repeat", "einops pack", "rows", "pad_sequence", "parameters_to_vector", "as_tensor"),
    *("complex", "cast to complex", "vmap"),
}


def compare_asking(k2, asking):
    toy_joiner.compare(
        k2,
        lambda am, lm: torch.tanh(ASKING[asking](am + lm)),
        routed=int(asking not in ENDS_THE_RECORDING),
        materialised=None,
        bound=1e-10,
    )


@pytest.mark.parametrize("asking", ASKING)
def test_what_asks_for_a_tensor_gets_one(k2, asking):
    compare_asking(k2, asking)
    for name in panda_icefall.status().materialised:
        assert " at 0x" not in name
        assert "<" not in name


@pytest.mark.parametrize(
    ("asking", "name"),
    [
        ("scripted function", "scripted scripted_double"),
        ("scripted module", "scripted Swoosh.forward"),
        ("isinstance", "HiddenJoiner, which raised AssertionError"),
        ("is_tensor", "HiddenJoiner, which raised TypeError"),
        ("custom operator", "twice"),
        ("partial", "doubled"),
        ("einops reduce", "mean"),
    ],
)
def test_it_is_counted_by_a_name_one_can_read(k2, asking, name):
    compare_asking(k2, asking)
    assert name in panda_icefall.status().materialised


def test_a_layer_of_einops_sees_the_hidden_tensor_only(k2):
    compare_asking(k2, "einops rearrange")
    assert not any("raised" in name for name in panda_icefall.status().materialised)


def recorded_logits(k2, joiner, data):
    return joiner(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges))


USES = {
    "torch.save": lambda x: torch.load(saved(x)),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "copy": copy.copy,
    "numpy number": lambda x: (np.float64(2.0) * x).tolist(),
    "format": lambda x: len(f"{x}"),
    "contains": lambda x: 3.0 in x,
    "hook": lambda x: x.register_hook(lambda grad: grad) and None,
    "testing": lambda x: torch.allclose(x, x),
    "storage": lambda x: x.data_ptr() != 0,
    "type": lambda x: x.type(),
}


def saved(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("use", USES)
def test_recorded_logits_are_used_as_tensors_are(k2, use):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)
    dense = USES[use](recorded_logits(k2, joiner, data))
    with panda_icefall.patched():
        ours = USES[use](recorded_logits(k2, joiner, data))
    assert type(ours) is type(dense)
    if isinstance(dense, torch.Tensor):
        torch.testing.assert_close(ours, dense)
    else:
        assert ours == dense


def test_what_a_tensor_refuses_is_refused_with_its_words(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    with panda_icefall.patched():
        logits = recorded_logits(k2, joiner, data)
        with pytest.raises(RuntimeError, match="deepcopy protocol"):
            copy.deepcopy(logits)
        with pytest.raises(RuntimeError, match="requires grad"):
            np.asarray(logits)
        with pytest.raises(AttributeError, match="has no attribute 'logits'"):
            logits.logits  # noqa: B018


@pytest.mark.parametrize(
    "backward",
    [
        lambda logits, adjoint: logits.backward(adjoint),
        lambda logits, adjoint: torch.autograd.backward(logits, adjoint),
        lambda logits, adjoint: torch.autograd.backward(tensors=[logits], grad_tensors=[adjoint]),
    ],
)
def test_logits_go_backward_by_themselves(k2, backward):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)

    def run():
        logits = recorded_logits(k2, joiner, data)
        joiner.zero_grad()
        backward(logits, torch.ones(logits.shape, dtype=logits.dtype))
        return [p.grad.clone() for p in joiner.parameters()]

    dense = run()
    with panda_icefall.patched():
        torch.testing.assert_close(run(), dense, rtol=1e-12, atol=0)
        logits = recorded_logits(k2, joiner, data)
        (grad,) = torch.autograd.grad(logits, joiner.output_linear.bias, torch.ones(logits.shape))
    torch.testing.assert_close(grad, dense[1], rtol=1e-12, atol=0)
    assert panda_icefall.status().materialised["grad"] == 1


def test_shape_and_dtype_cost_no_tensor(k2):
    data = toy.batch(k2)
    dense, _ = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
    with panda_icefall.patched():
        am, _ = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        dense_facts, facts = (
            [
                *(x.size(), x.size(-1), x.dim(), x.ndim, x.numel(), x.nelement(), len(x)),
                *(x.element_size(), x.is_floating_point(), x.is_complex(), x.layout, x.is_sparse),
                *(torch.numel(x), torch.is_floating_point(x), x.is_cuda, x.is_cpu, x.is_meta),
            ]
            for x in (dense, am)
        )
    assert facts == dense_facts
    assert panda_icefall.status().materialised == {}


@pytest.mark.parametrize("pack", [lambda x: x, lambda x: (1, x)], ids=["alone", "tuple"])
def test_a_reentrant_checkpoint_around_pruning_and_joiner_keeps_every_gradient(k2, pack):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)

    def run():
        def part(am, lm):
            return pack(joiner(*k2.do_rnnt_pruning(am, lm, data.ranges)))

        joiner.zero_grad()
        data.am.grad = None
        found = checkpoint(part, data.am, data.lm, use_reentrant=True)
        logits = found if isinstance(pack(0), int) else found[1]
        k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary).sum().backward()
        return [data.am.grad.clone(), *(p.grad.clone() for p in joiner.parameters())]

    dense = run()
    with counted.routed(0, dense=1, materialised={"CheckpointFunction": 2}):
        torch.testing.assert_close(run(), dense, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("__getitem__", lambda x: x + x[x > 0].sum()),
        ("where", lambda x: x + torch.where(x > 0)[0].sum()),
        ("std", lambda x: x / (x.std(-1, keepdim=True) + 1)),
    ],
)
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_what_a_rule_cannot_judge_is_done_on_tensors(k2, name, operation, is_checkpointed):
    def hidden(am, lm):
        if is_checkpointed:
            return checkpoint(operation, am + lm, use_reentrant=False).cos()
        return operation(am + lm).cos()

    toy_joiner.compare(k2, hidden, materialised=None, bound=1e-10)
    assert panda_icefall.status().materialised[name] >= 1


@pytest.mark.parametrize("name", ["register_hook", "retain_grad"])
def test_a_hook_on_a_tensor_that_was_recorded_before_is_refused(k2, name):
    data = toy.batch(k2)
    with panda_icefall.patched():
        am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        toy.TanhJoiner()(am, lm)
        with pytest.raises(PandaError, match=f"{name}: got a recorded tensor that was used before"):
            getattr(am, name)(*([print] if name == "register_hook" else []))
        am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        getattr(lm, name)(*([print] if name == "register_hook" else []))  # its first use
