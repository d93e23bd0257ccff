"""Properties in float32 and half precision: no further from float64 than dense logits are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import panda_icefall
from drawn import tensors
from drawn.lattices import Lattice, lattices
from panda_icefall import transducer_loss

DTYPES = (torch.float32, torch.bfloat16)
if torch.__version__ >= "2.":  # before, a CPU had no operations for it
    DTYPES += (torch.float16,)


@dataclass(frozen=True, eq=False)
class Case:
    """A loss of ``linear(tanh(am + lm))`` in a dtype; attributes as of ``own_loop.Case``."""

    lattice: Lattice
    dtype: torch.dtype
    has_bias: bool
    width: int
    workspace: int | None
    adjoint_tolerance: float | None
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    return Case(
        lattice=draw(lattices()),
        dtype=draw(st.sampled_from(DTYPES)),
        has_bias=draw(st.booleans()),
        width=draw(st.sampled_from([2, 8])),
        workspace=draw(tensors.workspaces),
        adjoint_tolerance=draw(st.sampled_from([0.0, None])),
        seed=draw(st.integers(0, 2**16)),
    )


def check(case: Case) -> dict[str, int]:
    """The error is that of dense logits in this dtype, or a few roundings of what is summed."""
    lattice = case.lattice
    (B, T, S), C = lattice.shape, lattice.classes
    g = torch.Generator().manual_seed(case.seed)
    am, lm = (
        torch.randn(B, n, case.width, generator=g).to(case.dtype).requires_grad_()
        for n in (T, S + 1)
    )
    weight = (torch.randn(C, case.width, generator=g) / case.width**0.5).to(case.dtype)
    bias = torch.randn(C, generator=g).to(case.dtype) / 2 if case.has_bias else None
    leaves = [am, lm, weight.requires_grad_()]
    leaves += [] if bias is None else [bias.requires_grad_()]
    upstream = 1 + torch.rand(B, generator=g)

    def joiner(am: Any, lm: Any, weight: Tensor = weight, bias: Tensor | None = bias) -> Any:
        x = torch.tanh(am.unsqueeze(2) + lm.unsqueeze(1))
        return nn.functional.linear(x, weight, bias)

    def ours(**options: Any) -> Tensor:
        lengths = torch.tensor(lattice.frames), torch.tensor(lattice.states)
        return transducer_loss(
            joiner, am, lm, lattice.targets, *lengths, lattice.kind.blank, "none",
            adjoint_tolerance=case.adjoint_tolerance, **lattice.options(), **options,
        )  # fmt: skip

    options: dict[str, Any] = {}
    if case.workspace is not None:
        workspace_bytes = tensors.workspace_of(case.workspace, lattice.evaluated * C, ours)
        options["workspace_mib"] = tensors.mib(workspace_bytes)
    before = panda_icefall.status()
    costs = ours(**options)
    found = [costs, *tensors.gradients((costs * upstream).sum(), leaves)]
    assert (panda_icefall.status() - before).losses_routed == 1
    assert costs.dtype == torch.float32

    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = joiner(*wide, *([None] if bias is None else []))
    logits.retain_grad()
    costs = lattice.costs(logits)
    exact = [costs.detach(), *tensors.gradients((costs * upstream).sum(), [*wide, logits])]
    # torch 1.13 has no half products on a CPU: the dense twin is of rounded float32 numbers.
    dense = _dense(case, leaves, upstream, has_bias=bias is not None)

    eps = torch.finfo(case.dtype).eps
    *exact, logits_grad = exact
    reach = 1 + logits.detach().abs().max().item()
    # What is added up in each gradient, if nothing cancelled.
    mass = _mass(logits_grad)
    scales = [reach * (T + S + 1)] + [mass * reach * case.width**0.5] * len(leaves)
    for i, (x, y, ref, scale) in enumerate(zip(found, dense, exact, scales)):
        unit = eps if i or case.dtype != torch.float32 else 2**-22
        allowed = max(1.5 * _rms(y.double() - ref), unit * scale)
        assert _rms(x.double() - ref) <= allowed, (i, _rms(x.double() - ref), allowed)
    return {}


def _dense(case: Case, leaves: list[Tensor], upstream: Tensor, has_bias: bool) -> list[Tensor]:
    """Costs and gradients of logits that are rounded to the dtype."""
    copies = [leaf.detach().float().requires_grad_() for leaf in leaves]
    am, lm, weight, *bias = copies
    x = _rounded(torch.tanh(am.unsqueeze(2) + lm.unsqueeze(1)), case.dtype)
    logits = nn.functional.linear(x, weight, bias[0] if has_bias else None)
    costs = case.lattice.costs(_rounded(logits, case.dtype))
    grads = tensors.gradients((costs * upstream).sum(), copies)
    return [costs.detach(), *(g.to(case.dtype) for g in grads)]


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded, and so is its gradient."""
    return x.to(dtype).float()


def _mass(logits_grad: Tensor) -> float:
    """The adjoints of all sites, to the size of what they leave on the logits."""
    return max(1.0, logits_grad.abs().sum().item())


def _rms(x: Tensor) -> float:
    return x.double().pow(2).mean().sqrt().item() if x.numel() else 0.0
