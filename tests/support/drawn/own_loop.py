"""Properties of ``transducer_loss`` and ``pruned_transducer_loss``: every loss, as the oracle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from dispatch import LargestTensor
from hypothesis import strategies as st
from torch import Tensor

import panda_icefall
from drawn import tensors
from drawn.joiners import UNRECORDABLE, Joiner, joiners
from drawn.lattices import FAMILIES, Lattice, lattices
from panda_icefall import Status, pruned_transducer_loss, transducer_loss
from panda_icefall.lattice.mutual_information import has_k2_recursion

MODES = ("backward", "backward", "twice", "accumulated", "two losses", "no_grad", "inference")


@dataclass(frozen=True, eq=False)
class Case:
    """One loss of one's own loop.

    Attributes:
      am_form, lm_form: as of ``tensors.laid_out``.
      peak: what am and lm are multiplied by.
      is_placed: whether am and lm come as ``[B, T, 1, D]`` and ``[B, 1, S + 1, D]``.
      trained: as of ``tensors.choose_trained``.
      workspace: as of ``tensors.workspaces``.
      mode: what is done with the loss.
    """

    lattice: Lattice
    joiner: Joiner
    am_form: str
    lm_form: str
    peak: float
    is_placed: bool
    trained: str
    workspace: int | None
    adjoint_tolerance: float | None
    reduction: str
    mode: str
    seed: int

    @property
    def losses(self) -> int:
        """How many of them the mode computes."""
        return losses_of(self.mode)


@st.composite
def cases(draw: Any, *, is_pruned: bool, families: tuple[str, ...] = FAMILIES) -> Case:
    if is_pruned:
        families = tuple(family for family in families if family != "one_sym_per_frame")
    lattice = draw(lattices(families=families, is_pruned=is_pruned))
    joiner = draw(joiners(lattice.classes))
    # Known: dense dropout draws in the order of the memory, a recorded one in that of the sites.
    forms = st.just("plain") if joiner.draws else tensors.forms
    return Case(
        lattice=lattice,
        joiner=joiner,
        am_form=draw(forms),
        lm_form=draw(forms),
        peak=draw(st.sampled_from([1.0, 1.0, 6.0])),
        is_placed=draw(st.booleans()),
        trained=draw(tensors.trained),
        workspace=draw(tensors.workspaces),
        adjoint_tolerance=draw(st.sampled_from([0.0, None])),
        reduction=draw(st.sampled_from(["none", "sum", "mean"])),
        mode=draw(st.sampled_from(MODES)),
        seed=draw(st.integers(0, 2**16)),
    )


def check(case: Case) -> dict[str, int]:
    """The loss of a joiner and its gradients are the oracle's, and it was routed.

    Returns:
      Counts of what was looked at.
    """

    def ours(am: Tensor, lm: Tensor, **options: Any) -> Tensor:
        given = {"adjoint_tolerance": case.adjoint_tolerance, "reduction": case.reduction}
        return _loss(case, am, lm, **given, **case.lattice.options(), **options)

    counted, facts = compare(case, ours)
    is_routed, losses = case.joiner.is_recordable, case.losses
    by_calls = 0 if is_routed else losses
    assert (counted.losses_routed, counted.losses_by_calls) == (losses - by_calls, by_calls)
    assert counted.losses_dense == 0
    assert counted.materialised == ({} if is_routed else {UNRECORDABLE: losses})
    return facts


def compare(
    case: Case, loss_of: Callable[..., Tensor], applied: Callable[..., Any] | None = None
) -> tuple[Status, dict[str, int]]:
    """A loss of am and lm against the oracle; what was counted, and looked at.

    Args:
      loss_of: takes am, lm, and the workspace if it is not ``applied``.
      applied: a context manager of the workspace in which it is called.
    """
    lattice, joiner, g = case.lattice, case.joiner, torch.Generator().manual_seed(case.seed)
    B, T, S = lattice.shape
    am_leaf, am_of = tensors.laid_out(case.am_form, (B, T, joiner.width), g)
    lm_leaf, lm_of = tensors.laid_out(case.lm_form, (B, S + 1, joiner.width), g)
    am_leaf, lm_leaf = am_leaf * case.peak, lm_leaf * case.peak
    named = {"am": am_leaf, "lm": lm_leaf, **joiner.parameters}
    leaves = tensors.choose_trained(named, case.trained)
    weights = torch.randn(B, generator=g, dtype=torch.float64)

    def ours(**options: Any) -> Tensor:
        torch.manual_seed(case.seed)
        return loss_of(am_of(am_leaf), lm_of(lm_leaf), **options)

    def once(**options: Any) -> None:
        if applied is None:
            ours(**options)
        else:
            with applied(**options):
                ours()

    def dense() -> Tensor:
        torch.manual_seed(case.seed)
        costs = lattice.costs(_logits(case, am_of(am_leaf), lm_of(lm_leaf)))
        return costs if case.reduction == "none" else getattr(costs, case.reduction)()

    workspace_bytes = None
    options: dict[str, Any] = {}
    if case.workspace is not None:
        numbers = lattice.evaluated * lattice.classes
        workspace_bytes = tensors.workspace_of(case.workspace, numbers, once)
        options["workspace_mib"] = tensors.mib(workspace_bytes)
    expected = expected_outcome(case.mode, dense, leaves, weights)
    with nullcontext() if applied is None else applied(**options):
        given = options if applied is None else {}
        before = panda_icefall.status()
        largest = LargestTensor()
        # In torch 1.13 a dispatch mode chokes on the numbers of a joiner that backward calls.
        with largest if joiner.is_recordable else nullcontext():
            found = outcome(case.mode, lambda: ours(**given), leaves, weights)
        counted = panda_icefall.status() - before
    if joiner.is_recordable:
        evaluated = lattice.evaluated * case.losses
        assert counted.sites_evaluated == evaluated, (counted.sites_evaluated, evaluated)
    tensors.assert_near(found[:1], expected[:1], 1e-11, 1.0)
    # Where an utterance has no path, k2's occupations are arbitrary.
    if bool(expected[0].isfinite().all()) or not has_k2_recursion(torch.device("cpu")):
        tensors.assert_near(found[1:], expected[1:], 1e-9, 1.0)
    if workspace_bytes is None or joiner.draws or not joiner.is_recordable:
        return counted, {}
    limit = max(workspace_bytes, _bytes_beside_tiles(case, leaves))
    assert largest.bytes <= limit, (largest.bytes, limit)
    dense_bytes = 8 * B * T * (S + 1) * lattice.classes
    return counted, {"watched": 1, "dense logits were larger": int(dense_bytes > limit)}


def expected_outcome(
    mode: str, loss_of: Callable[[], Tensor], leaves: list[Tensor], weights: Tensor
) -> list[Tensor]:
    """``outcome`` of an oracle, which needs gradients of its own.

    Where B = T = S + 1 = 1, torch gives am and lm of a dense sum one ``grad`` of the same memory,
    and adds to it twice: what is accumulated is added here.
    """
    if mode == "accumulated" and leaves:
        loss, other = loss_of(), loss_of()
        first = tensors.gradients(_weighted(loss, weights), leaves)
        second = tensors.gradients(0.25 * other.sum(), leaves)
        return [loss.detach(), *(x + y for x, y in zip(first, second))]
    return outcome("no_grad" if mode == "inference" else mode, loss_of, leaves, weights)


def losses_of(mode: str) -> int:
    return 2 if mode in ("accumulated", "two losses") else 1


def outcome(
    mode: str, loss_of: Callable[[], Tensor], leaves: list[Tensor], weights: Tensor
) -> list[Tensor]:
    """The loss and the gradients of all leaves, in the ways that training loops have."""
    if mode in ("no_grad", "inference"):
        with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
            loss = loss_of()
        assert not loss.requires_grad
        return [loss]
    loss = loss_of()
    total = _weighted(loss, weights)
    if mode == "twice" and leaves:
        first = tensors.gradients(total, leaves, retain_graph=True)
        again = tensors.gradients(total, leaves)
        assert all(torch.allclose(x, y, 0, 0, equal_nan=True) for x, y in zip(first, again))
        return [loss.detach(), *first]
    if mode == "two losses":
        other = loss_of()
        return [loss.detach(), *tensors.gradients(total - 0.5 * other.sum(), leaves)]
    if mode == "accumulated" and leaves:
        total.backward()
        (0.25 * loss_of().sum()).backward()
        found = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        for leaf in leaves:
            leaf.grad = None
        return [loss.detach(), *found]
    if mode == "accumulated":
        loss_of()
    return [loss.detach(), *tensors.gradients(total, leaves)]


def _weighted(loss: Tensor, weights: Tensor) -> Tensor:
    return (loss * weights).sum() if loss.dim() else loss * weights[0]


def _loss(case: Case, am: Tensor, lm: Tensor, **options: Any) -> Tensor:
    lattice, kind, joiner = case.lattice, case.lattice.kind, case.joiner
    blank = -1 if kind.blank == lattice.tokens - 1 else kind.blank
    if lattice.ranges is not None:
        return pruned_transducer_loss(
            joiner, am, lm, lattice.targets, lattice.ranges, blank, lattice.boundary, **options
        )
    lengths = torch.tensor(lattice.frames), torch.tensor(lattice.states)
    if case.is_placed:
        am, lm, placed = am.unsqueeze(2), lm.unsqueeze(1), joiner
    else:

        def placed(am: Any, lm: Any) -> Any:
            return joiner(am.unsqueeze(2), lm.unsqueeze(1))

    return transducer_loss(placed, am, lm, lattice.targets, *lengths, blank, **options)


def _logits(case: Case, am: Tensor, lm: Tensor) -> Tensor:
    """As tensors, at all sites or at those of the ranges."""
    B, T, S = case.lattice.shape
    ranges = case.lattice.ranges
    if ranges is None:
        shape = (B, T, S + 1, am.shape[-1])
        return case.joiner(am.unsqueeze(2).expand(shape), lm.unsqueeze(1).expand(shape))
    index = torch.arange(B)[:, None, None]
    return case.joiner(am.unsqueeze(2).expand(*ranges.shape, am.shape[-1]), lm[index, ranges])


def _bytes_beside_tiles(case: Case, leaves: list[Tensor]) -> int:
    """Of the largest tensor that is no scratch: inputs, weights, tables, the lattice's own."""
    B, T, S = case.lattice.shape
    kind, joiner = case.lattice.kind, case.joiner
    rows = B * max(T, S + 1) * 2 * joiner.width
    folded = (joiner.classes + 1) * 2 * joiner.width  # weights of heads that became one
    arcs = max(4, 2 * len(kind.durations), 2 + len(kind.big_blank_durations))
    lattice = B * (T + S + 2) * (S + 2) * arcs
    given = max([1, *(x.numel() for x in (*leaves, *joiner.parameters.values()))])
    return 8 * max(rows, folded, lattice, given)
