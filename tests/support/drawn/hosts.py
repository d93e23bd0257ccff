"""Properties of ``apply`` on k2's own functions: the pruned loss and the simple one."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass, replace
from typing import Any

import bands
import simple_losses
import torch
import torch.nn.functional as F
import toy_simple
from dispatch import LargestTensor
from hypothesis import strategies as st
from torch import Tensor, nn

import panda_icefall
from drawn import own_loop, tensors
from drawn.joiners import UNRECORDABLE, joiners
from drawn.lattices import Lattice, lattices
from panda_icefall.routing import hosts

PRUNED = ("regular", "modified", "constrained", "hat")


def patched_module() -> Any:
    """Real k2, or what stands in for it."""
    try:
        return importlib.import_module("k2")
    except ImportError:
        return importlib.import_module(hosts.OWN_FUNCTIONS)


@st.composite
def pruned_cases(draw: Any) -> own_loop.Case:
    """Losses that k2 has, of its own pruning."""
    case = draw(own_loop.cases(is_pruned=True, families=PRUNED))
    kind = replace(case.lattice.kind, clamp=-1.0, fastemit_lambda=0.0)
    joiner = case.joiner
    if joiner.head == "rows" and not joiner.is_recordable:
        joiner = draw(joiners(case.lattice.classes, may_be_given=False))
    return replace(case, lattice=replace(case.lattice, kind=kind), joiner=joiner)


def check_pruned(case: own_loop.Case) -> dict[str, int]:
    """``do_rnnt_pruning``, joiner, ``rnnt_loss_pruned``: routed, and the oracle's numbers."""
    lattice, joiner, k2, losses = case.lattice, case.joiner, patched_module(), case.losses
    symbols = lattice.targets.masked_fill(lattice.targets < 0, lattice.kind.blank)

    def loss_of(am: Tensor, lm: Tensor) -> Tensor:
        logits = joiner(*k2.do_rnnt_pruning(am, lm, lattice.ranges))
        return k2.rnnt_loss_pruned(
            logits, symbols, lattice.ranges, lattice.kind.blank, lattice.boundary,
            rnnt_type=lattice.kind.rnnt_type, delay_penalty=lattice.kind.delay_penalty,
            reduction=case.reduction, use_hat_loss=lattice.kind.head == "hat",
        )  # fmt: skip

    applied = functools.partial(panda_icefall.patched, adjoint_tolerance=case.adjoint_tolerance)
    counted, facts = own_loop.compare(case, loss_of, applied)
    assert (counted.losses_routed, counted.losses_dense) == (losses, 0)
    assert counted.materialised == ({} if joiner.is_recordable else {UNRECORDABLE: losses})
    return facts


@dataclass(frozen=True, eq=False)
class SimpleCase:
    """A smoothed or a simple loss; attributes as of ``own_loop.Case`` and of k2."""

    lattice: Lattice
    kind: type[nn.Module]
    bias: bool
    lm_only_scale: float
    am_only_scale: float
    factor: float
    are_recorded: bool
    trained: str
    workspace: int | None
    reduction: str
    mode: str
    seed: int


@st.composite
def simple_cases(draw: Any) -> SimpleCase:
    return SimpleCase(
        lattice=draw(lattices(families=PRUNED[:3])),
        kind=draw(st.sampled_from([nn.Linear, toy_simple.ScaledLinear, toy_simple.LoRALinear])),
        bias=draw(st.booleans()),
        lm_only_scale=draw(st.sampled_from([0.0, 0.25])),
        am_only_scale=draw(st.sampled_from([0.0, 0.1])),
        factor=draw(st.sampled_from([1.0, 3.0])),
        are_recorded=draw(st.integers(0, 3)) > 0,
        trained=draw(st.sampled_from(["all", "all", "am alone", "no bias", "nothing"])),
        workspace=draw(tensors.workspaces),
        reduction=draw(st.sampled_from(["none", "sum", "mean"])),
        mode=draw(st.sampled_from(own_loop.MODES)),
        seed=draw(st.integers(0, 2**16)),
    )


def check_simple(case: SimpleCase) -> dict[str, int]:
    """Deferred projections, or tensors in tiles: the numbers of k2's formula."""
    lattice, k2 = case.lattice, patched_module()
    (B, T, S), C = lattice.shape, lattice.classes
    torch.manual_seed(case.seed)
    model = nn.Module()
    model.simple_am_proj = case.kind(5, C, bias=case.bias)
    model.simple_lm_proj = case.kind(7, C, bias=case.bias)
    model.double()
    am_in, lm_in = (
        case.factor * torch.randn(B, n, width, dtype=torch.float64)
        for n, width in ((T, 5), (S + 1, 7))
    )
    named = {"am_in": am_in, "lm_in": lm_in, **dict(model.named_parameters())}
    for name, leaf in named.items():
        leaf.requires_grad_(
            {"all": True, "am alone": "am" in name, "no bias": "bias" not in name}.get(
                case.trained, False
            )
        )
    leaves = [leaf for leaf in named.values() if leaf.requires_grad]
    symbols = lattice.targets.masked_fill(lattice.targets < 0, lattice.kind.blank)
    weights = torch.randn(B, dtype=torch.float64)

    def ours() -> Tensor:
        return k2.rnnt_loss_smoothed(
            lm=model.simple_lm_proj(lm_in), am=model.simple_am_proj(am_in), symbols=symbols,
            termination_symbol=lattice.kind.blank, lm_only_scale=case.lm_only_scale,
            am_only_scale=case.am_only_scale, boundary=lattice.boundary,
            rnnt_type=lattice.kind.rnnt_type, delay_penalty=lattice.kind.delay_penalty,
            reduction=case.reduction,
        )  # fmt: skip

    applied = functools.partial(panda_icefall.patched, model if case.are_recorded else None)

    def once(**options: Any) -> None:
        with applied(**options):
            ours()

    def dense() -> Tensor:
        costs = _smoothed_costs(case, model.simple_am_proj(am_in), model.simple_lm_proj(lm_in))
        return costs if case.reduction == "none" else getattr(costs, case.reduction)()

    options: dict[str, Any] = {}
    workspace_bytes = None
    if case.workspace is not None:
        workspace_bytes = tensors.workspace_of(case.workspace, B * T * C, once)
        options["workspace_mib"] = tensors.mib(workspace_bytes)
    expected = own_loop.expected_outcome(case.mode, dense, leaves, weights)
    with applied(**options), LargestTensor() as largest:
        before = panda_icefall.status()
        found = own_loop.outcome(case.mode, ours, leaves, weights)
        counted = panda_icefall.status() - before
    losses = own_loop.losses_of(case.mode)
    # A low-rank layer whose first part is as wide as there are classes is taken for the projection.
    is_taken = case.kind is toy_simple.LoRALinear and C == toy_simple.RANK and case.are_recorded
    made = ("simple_am_proj: __matmul__", "simple_lm_proj: __matmul__") if is_taken else ()
    assert counted.simple_losses_dense == 0
    assert counted.materialised == dict.fromkeys(made, losses)
    deferred = losses if case.are_recorded else 0
    assert counted.simple_losses_deferred == deferred
    assert counted.simple_losses_of_tensors == losses - deferred
    tensors.assert_near(found[:1], expected[:1], 1e-11, 1.0)
    tensors.assert_near(found[1:], expected[1:], 1e-9, 1.0)
    if workspace_bytes is None or not case.are_recorded:
        return {}
    beside = 8 * max(B * (T + 1) * (S + 2) * 4, (C + 1) * 10, B * max(T, S + 1) * 14)
    limit = max(workspace_bytes, beside)
    assert largest.bytes <= limit, (largest.bytes, limit)
    return {"watched": 1, "dense logits were larger": int(limit < 8 * B * T * C)}


def _smoothed_costs(case: SimpleCase, am: Tensor, lm: Tensor) -> Tensor:
    """``[B]``: the arcs by k2's formula, and one state after another."""
    lattice, (B, T, S) = case.lattice, case.lattice.shape
    kind, C = lattice.kind, lattice.classes
    eye, zeros = torch.eye(C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)
    px, py = simple_losses.arcs_by_formula(
        am, eye, zeros, lm, eye, zeros,
        symbols=lattice.targets.masked_fill(lattice.targets < 0, kind.blank),
        termination_symbol=kind.blank,
        lm_only_scale=case.lm_only_scale, am_only_scale=case.am_only_scale,
    )  # fmt: skip
    frames = torch.tensor(lattice.frames)[:, None, None]
    px = px + kind.delay_penalty * ((frames - 1) / 2 - torch.arange(T))
    target = F.pad(px, (0, 0, 0, 1)).transpose(1, 2)
    ranges = torch.arange(S + 1).expand(B, T, S + 1)
    scores = bands.score_by_states(
        target, py.transpose(1, 2), ranges, S, lattice.boundary, kind.rnnt_type
    )
    return -scores
