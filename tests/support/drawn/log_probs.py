"""Properties of ``selected_log_probs``: K, masks, sites that are not live, tables, tolerances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from dispatch import LargestTensor
from hypothesis import strategies as st
from oracle import dense_selected_log_probs
from torch import Tensor

from drawn import tensors
from panda_icefall.normalizer import RowProgram, RowTable, TileCounters, selected_log_probs


@dataclass(frozen=True)
class Case:
    """A call of the op.

    Attributes:
      table_rows: of the table that the sites read by an index; 0: each site has a row of its own.
      peak: what the rows are multiplied by.
      shift: what is added to every logit.
      zeros: share of the sites whose adjoints are 0.
      head: "linear", "no bias" or "rows".
    """

    sites: int
    hidden: int
    classes: int
    selected: int
    table_rows: int
    head: str
    has_mask: bool
    has_live: bool
    peak: float
    shift: float
    zeros: float
    dtype: torch.dtype
    adjoint_tolerance: float | None
    workspace: int | None
    trained: tuple[bool, bool, bool]
    seed: int


@st.composite
def cases(draw: Any) -> Case:
    return Case(
        sites=draw(st.sampled_from([0, 1, 2, 7, 23, 61])),
        hidden=draw(st.sampled_from([1, 3, 8])),
        classes=draw(st.sampled_from([1, 2, 5, 37, 211])),
        selected=draw(st.integers(1, 4)),
        table_rows=draw(st.sampled_from([0, 0, 1, 5])),
        head=draw(st.sampled_from(["linear", "linear", "no bias", "rows"])),
        has_mask=draw(st.booleans()),
        has_live=draw(st.booleans()),
        peak=draw(st.sampled_from([1.0, 10.0])),
        shift=draw(st.sampled_from([0.0, 300.0, -900.0])),
        zeros=draw(st.sampled_from([0.0, 0.5, 1.0])),
        dtype=draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16])),
        adjoint_tolerance=draw(st.sampled_from([0.0, None, 1e-3, 0.2])),
        workspace=draw(tensors.workspaces),
        trained=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        seed=draw(st.integers(0, 2**16)),
    )


def check(case: Case) -> dict[str, int]:
    """Equal to the dense expression; what was skipped is as much as was allowed."""
    g = torch.Generator().manual_seed(case.seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    N, K, C = case.sites, case.selected, case.classes
    H = C if case.head == "rows" else case.hidden
    table = (case.peak * randn(case.table_rows or N, H)).to(case.dtype)
    weight, bias = randn(C, H) / H**0.5, randn(C) + case.shift
    weight, bias = weight.to(case.dtype), bias.to(case.dtype)
    index = torch.randint(0, case.table_rows, (N,), generator=g) if case.table_rows else None
    ids = torch.randint(0, C, (N, K), generator=g)
    mask = torch.rand(N, K, generator=g) < 0.7 if case.has_mask else None
    live = torch.rand(N, generator=g) < 0.7 if case.has_live else None
    adjoints, log_z_adjoints = randn(N, K), randn(N)
    adjoints = adjoints * 10 ** (-6 * torch.rand(N, 1, generator=g, dtype=torch.float64))
    silent = torch.rand(N, generator=g) < case.zeros
    adjoints[silent] = 0
    log_z_adjoints = (log_z_adjoints * adjoints.abs().sum(1)).masked_fill(silent, 0)
    leaves = [table, weight, bias]
    used = [True, case.head != "rows", case.head == "linear"]
    for leaf, wanted, is_used in zip(leaves, case.trained, used):
        leaf.requires_grad_(wanted and is_used)

    def ours(counters: TileCounters | None = None, **options: Any) -> tuple[Tensor, Tensor]:
        return selected_log_probs(
            RowProgram((RowTable(table, index),)),
            weight if used[1] else None,
            bias if used[2] else None,
            ids if mask is None else ids.masked_fill(~mask, 10**6),  # is not read
            selected_mask=mask,
            live=live,
            adjoint_tolerance=case.adjoint_tolerance,
            counters=counters,
            **options,
        )

    options: dict[str, Any] = {}
    if case.workspace is not None:
        options["workspace_bytes"] = tensors.workspace_of(
            case.workspace,
            N * C,
            lambda workspace_mib: ours(workspace_bytes=int(workspace_mib * 2**20)),
        )
    counters = TileCounters()
    with LargestTensor() as largest:
        found = ours(counters, **options)
        found = [*found, *_gradients(found, adjoints, log_z_adjoints, leaves)]
    expected = list(_dense(case, table, index, weight, bias, ids, mask, live))
    expected += _gradients(expected, adjoints, log_z_adjoints, leaves)
    totals = counters.totals
    alive = N if live is None else int(live.sum())
    assert (totals.sites, totals.sites_evaluated) == (N, alive)
    if any(leaf.requires_grad for leaf in leaves):
        mass = _mass(adjoints, log_z_adjoints, mask, live, found[0].dtype)
        skipped, kept = _skipped(mass, case, found[0].dtype)
        assert totals.sites_backward == kept, (totals.sites_backward, kept)
        assert abs(totals.adjoint_mass_skipped - skipped) <= 1e-6 * max(skipped, 1e-30)
    else:
        skipped = 0.0
    eps = torch.finfo(case.dtype).eps
    magnitude = max([1.0, *(x.detach().abs().max().item() for x in expected[:2] if x.numel())])
    wide = torch.finfo(found[0].dtype).eps
    # Logits are sums of H products; their rounding is that of the accumulation dtype.
    tensors.assert_near(found[:2], expected[:2], 16 * H**0.5 * wide, magnitude)
    total = float(adjoints.abs().sum() + log_z_adjoints.abs().sum())
    largest_value = max([1.0, *(x.detach().abs().max().item() for x in leaves if x.numel())])
    rounding = 64 * wide * magnitude + 4 * eps
    for x, ref in zip(found[2:], expected[2:]):
        error = (x.double() - ref.double()).abs().max().item() if x.numel() else 0.0
        # A site's logits have a gradient of at most twice its mass.
        assert error <= largest_value * (2.1 * skipped + rounding * (total + 1e-30)), error
    if case.workspace is None or case.dtype != torch.float64:
        return {}
    given = max(table.numel(), weight.numel(), N * max(K, 2), 1)
    limit = max(options["workspace_bytes"], 8 * given)
    assert largest.bytes <= limit, (largest.bytes, limit)
    return {"watched": 1, "dense logits were larger": int(limit < 8 * N * C)}


def _dense(
    case: Case, table: Tensor, index: Tensor | None, weight: Tensor, bias: Tensor, ids: Tensor,
    mask: Tensor | None, live: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = table if index is None else table[index]
    if case.head == "rows":
        weight = torch.eye(case.classes, dtype=torch.float64)
    logp, log_z = dense_selected_log_probs(
        rows, weight, bias if case.head == "linear" else None, ids
    )
    if mask is not None:
        logp = logp.masked_fill(~mask, 0)
    if live is not None:
        logp, log_z = logp.masked_fill(~live[:, None], 0), log_z.masked_fill(~live, 0)
    return logp, log_z


def _gradients(
    outputs: Any, adjoints: Tensor, log_z_adjoints: Tensor, leaves: list[Tensor]
) -> list[Tensor]:
    logp, log_z = outputs
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    total = (logp * adjoints.to(logp.dtype)).sum() + (log_z * log_z_adjoints.to(log_z.dtype)).sum()
    return tensors.gradients(total, wanted)


def _mass(
    adjoints: Tensor, log_z_adjoints: Tensor, mask: Tensor | None, live: Tensor | None,
    dtype: torch.dtype,
) -> list[float]:  # fmt: skip
    """The absolute adjoints of each live site, as the op is given them."""
    given = adjoints.to(dtype).double().abs()
    if mask is not None:
        given = given * mask
    mass = given.sum(dim=1) + log_z_adjoints.to(dtype).double().abs()
    return (mass if live is None else mass[live]).tolist()


def _skipped(mass: list[float], case: Case, dtype: torch.dtype) -> tuple[float, int]:
    """The mass of the smallest sites that may be left out, and how many others there are."""
    tolerance = case.adjoint_tolerance
    if tolerance is None:
        tolerance = torch.finfo(dtype).eps / 2
    limit, skipped, left_out = sum(mass) * tolerance, 0.0, 0
    for size in sorted(mass):
        if size and skipped + size > limit:
            break
        skipped, left_out = skipped + size, left_out + 1
    return skipped, len(mass) - left_out
