"""Joiners that ``transducer_loss`` records, with the values and gradients of dense."""

import pytest
import torch
from lattice_oracle import LossKind, transducer_costs
from torch import nn
from torch.nn.functional import dropout, layer_norm, silu
from transducer_cases import C, D

import panda_icefall
from panda_icefall import transducer_loss

DOUBLE = {"dtype": torch.float64}


def joined(am, lm):
    """icefall's sum, of am and lm that the joiner places."""
    return am.unsqueeze(2) + lm.unsqueeze(1)


def expanded(am, lm):
    shape = (*am.shape[:2], lm.shape[1], -1)
    return am.unsqueeze(2).expand(shape), lm.unsqueeze(1).expand(shape)


def repeated(am, lm):
    return am.unsqueeze(2).repeat(1, 1, lm.size(1), 1), lm[:, None].repeat(1, am.size(1), 1, 1)


# Modules that the joiners share, and joiners by what they do.
torch.manual_seed(11)
LINEAR, WIDE, INNER = (
    nn.Linear(D, C, **DOUBLE),
    nn.Linear(2 * D, C, **DOUBLE),
    nn.Linear(D, D, **DOUBLE),
)
STACK = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D), nn.Linear(D, C)).double()
NORMED = nn.utils.weight_norm(nn.Linear(D, C, **DOUBLE))
DOWN, UP = nn.Linear(D, 2, bias=False, **DOUBLE), nn.Linear(2, C, bias=False, **DOUBLE)
MODULES = nn.ModuleList([DOWN, UP, LINEAR, WIDE, INNER, STACK, NORMED])
JOINERS = {
    "sum": lambda am, lm: LINEAR(joined(am, lm).tanh()),
    "product": lambda am, lm: LINEAR((am[:, :, None] * lm[:, None]).sigmoid()),
    "sequential": lambda am, lm: STACK(joined(am, lm).relu()),
    "log_softmax": lambda am, lm: LINEAR(joined(am, lm).tanh()).log_softmax(dim=-1),
    "temperature": lambda am, lm: LINEAR(joined(am, lm).tanh()) / 2.5,
    "projected": lambda am, lm: LINEAR(joined(INNER(am), INNER(lm)).tanh()),
    "weight_norm": lambda am, lm: NORMED(joined(am, lm).tanh()),
    "tied": lambda am, lm: torch.matmul(joined(am, lm).tanh(), LINEAR.weight.t()),
    "gated": lambda am, lm: LINEAR(joined(am, lm).tanh() * lm.sigmoid().unsqueeze(1)),
    "no_bias": lambda am, lm: UP(DOWN(joined(am, lm).tanh())),
    "lora": lambda am, lm: LINEAR(joined(am, lm).tanh()) + 2 * UP(DOWN(joined(am, lm).tanh())),
    "expanded": lambda am, lm: WIDE(torch.cat(expanded(am, lm), dim=-1).tanh()),
    "repeated": lambda am, lm: WIDE(torch.cat(repeated(am, lm), dim=-1).relu()),
    "normed_first": lambda am, lm: LINEAR(joined(layer_norm(am, (D,)), silu(lm)).tanh()),
    "no_linear": lambda am, lm: joined(am, lm).tanh() * 3,
}


@pytest.mark.parametrize("name", JOINERS)
@pytest.mark.parametrize("is_placed", [False, True], ids=["BTD", "BT1D"])
def test_recorded(name, is_placed):
    panda_icefall.routing.reset_counters()
    g = torch.Generator().manual_seed(3)
    am, lm = (torch.randn(2, n, D, generator=g, **DOUBLE).requires_grad_() for n in (6, 4))
    targets = torch.randint(1, D, (2, 3), generator=g)
    lengths = torch.tensor([6, 4]), torch.tensor([3, 0])
    joiner, inputs = JOINERS[name], (am, lm)
    if is_placed:
        joiner = lambda am, lm: JOINERS[name](am.squeeze(2), lm.squeeze(1))  # noqa: E731
        inputs = am.unsqueeze(2), lm.unsqueeze(1)
    loss = transducer_loss(joiner, *inputs, targets, *lengths, adjoint_tolerance=0.0)
    status = panda_icefall.status()
    assert (status.losses_routed, status.materialised) == (1, {})
    dense = transducer_costs(joiner(*inputs), targets, *lengths, LossKind()).mean()
    leaves = [am, lm, *MODULES.parameters()]
    found, expected = (torch.autograd.grad(x, leaves, allow_unused=True) for x in (loss, dense))
    torch.testing.assert_close(loss, dense, rtol=1e-12, atol=1e-12)
    assert [x is None for x in found] == [x is None for x in expected]
    for x, ref in zip(found, expected):
        if ref is not None:
            torch.testing.assert_close(x, ref, rtol=1e-10, atol=1e-12)


def test_dropout_draws_what_a_dense_run_draws():
    am, lm = torch.randn(2, 6, D, **DOUBLE), torch.randn(2, 4, D, **DOUBLE)
    targets, lengths = torch.ones(2, 3).long(), (torch.tensor([6, 6]), torch.tensor([3, 3]))

    def joiner(am, lm):
        return LINEAR(dropout(joined(am, lm).tanh(), 0.4))

    panda_icefall.routing.reset_counters()
    torch.manual_seed(5)
    loss = transducer_loss(joiner, am, lm, targets, *lengths)
    assert panda_icefall.status().losses_routed == 1
    torch.manual_seed(5)
    dense = transducer_costs(joiner(am, lm), targets, *lengths, LossKind()).mean()
    torch.testing.assert_close(loss, dense, rtol=1e-12, atol=1e-12)
