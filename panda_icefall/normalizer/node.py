"""The autograd node of selected log-probs: tile loops forward and backward, and what they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_icefall.first_order import first_order_only
from panda_icefall.normalizer import tile_loop
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.normalizer.counters import TileCounters
from panda_icefall.normalizer.engine import RowKernels
from panda_icefall.normalizer.head import LinearHead
from panda_icefall.normalizer.options import TileOptions
from panda_icefall.normalizer.plan import USEFUL_SIDE, TileCosts, TilePlan
from panda_icefall.normalizer.program import RowProgram, RowTable, Step


@dataclass(frozen=True)
class Call:
    """What one call's forward and backward share besides tensors, which autograd must hold.

    Attributes:
      steps, tables: of the program; the number of its tables.
      workspace_bytes: what the options say for the device.
      clamp: bound of every element of the logits' gradient, for a cost whose own gradient is 1;
        None: none.
    """

    steps: Sequence[Step]
    tables: int
    classes: int
    head_dtype: torch.dtype | None
    dtype: torch.dtype
    options: TileOptions
    workspace_bytes: int
    counters: TileCounters
    kernels: RowKernels
    clamp: float | None = None

    def head(self, weight: Tensor | None, bias: Tensor | None) -> LinearHead:
        return LinearHead.of(weight, bias, self.head_dtype, self.dtype)

    def plan(
        self, program: RowProgram, head: LinearHead, sites: int, with_gradients: bool
    ) -> TilePlan:
        costs = TileCosts.of(
            program, torch.finfo(self.dtype).bits // 8, casts_weight=head.casts_weight,
            with_gradients=with_gradients,
        )  # fmt: skip
        workspace_bytes, splits_classes = self.workspace_bytes, head.weight is not None
        if self.options.workspace_bytes is None:
            # However wide the joiner is, tiles that a GEMM is good for.
            fewest = min(self.classes, USEFUL_SIDE) if splits_classes else self.classes
            rows = USEFUL_SIDE if splits_classes else 1
            workspace_bytes = max(workspace_bytes, costs.tile_bytes(rows, fewest))
        return TilePlan.make(
            sites, self.classes, costs, workspace_bytes, splits_classes=splits_classes
        )


class SelectedLogProbs(torch.autograd.Function):
    """Autograd node; its ``inputs`` are the program's tables and then its parameters."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        call: Call,
        program: RowProgram,
        live_sites: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        ids: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = ids.device
        sites = _all_sites(ids) if live_sites is None else live_sites
        head = call.head(weight, bias)
        plan = call.plan(program, head, sites.shape[0], with_gradients=False)
        with call.counters.timed("forward", device), no_autocast(device):
            live_ids = ids if live_sites is None else ids.index_select(0, sites)
            live_logp, live_log_z = tile_loop.forward(
                program, head, sites, live_ids, plan, call.kernels
            )
        call.counters.add(tiles_forward=len(plan.row_tiles()) * len(plan.class_tiles()))
        ctx.call = call
        indices = [table.index for table in program.tables]
        ctx.save_for_backward(
            weight, bias, live_ids, live_log_z, live_sites, *indices, *inputs
        )  # fmt: skip
        ctx.set_materialize_grads(True)
        share = live_log_z.new_zeros(0 if call.clamp is None else ids.shape[0])
        if live_sites is None:
            return live_logp, live_log_z, share
        selected_logp = live_logp.new_zeros(ids.shape).index_copy_(0, sites, live_logp)
        log_z = live_log_z.new_zeros(ids.shape[0]).index_copy_(0, sites, live_log_z)
        return selected_logp, log_z, share

    @staticmethod
    @first_order_only
    def backward(  # type: ignore[override]
        ctx: Any, logp_grad: Tensor, log_z_grad: Tensor, share_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        weight, bias, ids, log_z, live_sites, *rest = ctx.saved_tensors
        indices, inputs = rest[: call.tables], rest[call.tables :]
        tables = [RowTable(values, index) for values, index in zip(inputs, indices)]
        program = RowProgram(tables, inputs[call.tables :], call.steps)
        with call.counters.timed("backward", ids.device), no_autocast(ids.device):
            sites = _all_sites(ids) if live_sites is None else live_sites
            adjoints, log_z_adjoints = (g.index_select(0, sites) for g in (logp_grad, log_z_grad))
            limits = None
            if call.clamp is not None:
                limits = call.clamp * share_grad.index_select(0, sites).abs()
            kept = _sites_that_matter(adjoints, log_z_adjoints, log_z, limits, call)
            head = call.head(weight, bias)
            plan = call.plan(program, head, kept.shape[0], with_gradients=True)
            _, _, _, needs_weight, needs_bias, _, *needs = ctx.needs_input_grad
            buffers = [
                t.new_zeros(t.shape, dtype=call.dtype) if need else None
                for t, need in zip(inputs, needs)
            ]
            wanted = tile_loop.Gradients(
                tables=buffers[: call.tables],
                parameters=buffers[call.tables :],
                weight=weight.new_zeros(weight.shape, dtype=call.dtype) if needs_weight else None,
                bias=bias.new_zeros(bias.shape, dtype=call.dtype) if needs_bias else None,
            )
            tile_loop.backward(
                program, head, sites[kept], ids[kept], log_z[kept],
                adjoints[kept], log_z_adjoints[kept], plan, call.kernels, wanted,
                None if limits is None else limits[kept],
            )  # fmt: skip
        tiles = len(plan.row_tiles()) * len(plan.class_tiles())
        call.counters.add(tiles_backward=tiles, sites_backward=kept.shape[0])
        return (
            None,
            None,
            None,
            None if wanted.weight is None else wanted.weight.to(weight.dtype),
            None if wanted.bias is None else wanted.bias.to(bias.dtype),
            None,
            *(None if g is None else g.to(t.dtype) for g, t in zip(buffers, inputs)),
        )


def _sites_that_matter(
    adjoints: Tensor, log_z_adjoints: Tensor, log_z: Tensor, limits: Tensor | None, call: Call
) -> Tensor:
    """Rows of ``adjoints`` whose backward is computed, ascending; counts the mass.

    Where gradients are clipped to ``limits``, a site counts for no more than is left of it.
    """
    sizes = adjoints.double().abs()
    if limits is not None:
        sizes = sizes.minimum(limits.double().unsqueeze(1))
    mass = sizes.sum(dim=1) + log_z_adjoints.double().abs()
    # Sites without a normaliser go last and are kept, adjoint 0 or not: their gradient is NaN in
    # the dense expression, and that must show. So is that of a site whose logits are all -inf.
    broken = ~log_z.isfinite()
    order = torch.where(broken, torch.full_like(mass, torch.inf), mass).argsort()
    ascending = mass[order]
    running = _running_sum(ascending)
    total = mass.sum()
    # A non-finite total says nothing about the single sites: then only exact zeros are left out.
    tolerance = call.options.tolerance_in(call.dtype)
    limit = torch.where(total.isfinite(), total * tolerance, torch.zeros_like(total))
    skipped = ((running <= limit) | (ascending == 0)) & ~broken[order]
    left_out = torch.where(skipped, ascending, torch.zeros_like(ascending)).sum()
    count, left_out_mass, total_mass = torch.stack(
        [skipped.sum().double(), left_out, total]
    ).tolist()
    if math.isfinite(total_mass):
        call.counters.add(adjoint_mass=total_mass, adjoint_mass_skipped=left_out_mass)
    # Back in site order: neighbours share table rows.
    return order[int(count) :].sort().values


def _running_sum(numbers: Tensor) -> Tensor:
    """Their cumsum; where results must repeat, by the CPU: CUDA's own is refused there."""
    if numbers.is_cuda and torch.are_deterministic_algorithms_enabled():
        return numbers.cpu().cumsum(dim=0).to(numbers.device)
    return numbers.cumsum(dim=0)


def _all_sites(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[0], device=ids.device)
