"""Operations that want a real tensor get one: same values and gradients, counted by a name."""

import copy
import functools

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

import panda_icefall

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


@pytest.mark.parametrize("asking", ASKING)
def test_what_asks_for_a_tensor_gets_one(k2, asking):
    toy_joiner.compare(
        k2, lambda am, lm: torch.tanh(ASKING[asking](am + lm)), routed=None, bound=1e-10
    )
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
    toy_joiner.compare(
        k2, lambda am, lm: torch.tanh(ASKING[asking](am + lm)), routed=None, bound=1e-10
    )
    assert name in panda_icefall.status().materialised


def test_a_layer_of_einops_sees_the_hidden_tensor_only(k2):
    toy_joiner.compare(k2, lambda am, lm: EINOPS["rearrange"](torch.tanh(am + lm)), routed=None)
    assert not any("raised" in name for name in panda_icefall.status().materialised)
