"""The autograd node of selected log-probs: tile loops forward and backward, and what they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from panda_icefall.first_order import first_order_only
from panda_icefall.freed import refuse_freed, shapes_of
from panda_icefall.normalizer import tile_loop
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.normalizer.counters import TileCounters
from panda_icefall.normalizer.head import ClassRanges, LinearHead
from panda_icefall.normalizer.options import TileOptions
from panda_icefall.normalizer.plan import LEAST_SHARE_ON_DEVICE, USEFUL_SIDE, TileCosts, TilePlan
from panda_icefall.normalizer.program import RowProgram, RowTable, Step
from panda_icefall.normalizer.retry import with_one_retry
from panda_icefall.normalizer.tensor_cores import scale_for_float16


@dataclass(frozen=True)
class Call:
    """What one call's forward and backward share besides tensors, which autograd must hold.

    Attributes:
      steps, tables: of the program; the number of its tables.
      read: the classes that are read.
      workspace_bytes: what the options say for the device.
      kernels: ``torch_rows``, or ``triton_rows``.
      clamp: bound of every element of the logits' gradient, for a cost whose own gradient is 1;
        None: none.
      is_part: as of ``panda_icefall.normalizer.op.select``.
    """

    steps: Sequence[Step]
    tables: int
    read: ClassRanges
    head_dtype: torch.dtype | None
    dtype: torch.dtype
    options: TileOptions
    workspace_bytes: int
    counters: TileCounters
    kernels: ModuleType
    clamp: float | None = None
    is_part: bool = False

    def head(self, weight: Tensor | None, bias: Tensor | None) -> LinearHead:
        return LinearHead.of(weight, bias, self.head_dtype, self.dtype, self.read)

    def plan(
        self, program: RowProgram, head: LinearHead, sites: int, with_gradients: bool
    ) -> TilePlan:
        costs = TileCosts.of(
            program, torch.finfo(self.dtype).bits // 8, class_bytes=head.class_bytes,
            half_gradient=head.gemms.widens, with_gradients=with_gradients,
        )  # fmt: skip
        classes = len(self.read.normalized)
        workspace_bytes, splits_classes = self.workspace_bytes, head.weight is not None
        if self.options.workspace_bytes is None:
            # However wide the joiner is, tiles that a GEMM is good for.
            fewest = min(classes, USEFUL_SIDE) if splits_classes else classes
            rows = USEFUL_SIDE if splits_classes else 1
            workspace_bytes = max(workspace_bytes, costs.tile_bytes(rows, fewest))
        is_on_cpu = program.tables[0].values.device.type == "cpu"
        return TilePlan.make(
            sites, classes, costs, workspace_bytes, splits_classes=splits_classes,
            least_share=1.0 if is_on_cpu else LEAST_SHARE_ON_DEVICE,
        )  # fmt: skip


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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = ids.device
        head = call.head(weight, bias)
        with call.counters.timed("forward", device), no_autocast(device):
            (live_ids,) = _rows(live_sites, ids)
            live_program = program if live_sites is None else program.at(live_sites)
            live_plain = torch.empty(
                live_ids.shape[0], len(call.read.plain), dtype=call.dtype, device=device
            )

            def in_tiles(call: Call) -> tuple[Call, TilePlan, tuple[Tensor, Tensor]]:
                plan = call.plan(program, head, live_ids.shape[0], with_gradients=False)
                found = tile_loop.forward(
                    live_program, head, live_ids, plan, call.kernels, live_plain
                )
                return call, plan, found

            # Backward goes on with tiles that fit.
            ctx.call, plan, (live_logp, live_log_z) = with_one_retry(in_tiles, call)
        call.counters.add(tiles_forward=len(plan.row_tiles()) * len(plan.class_tiles()))
        indices = [table.index for table in program.tables]
        ctx.shapes = shapes_of((weight, bias, *inputs))
        ctx.save_for_backward(
            weight, bias, live_ids, live_log_z, live_sites, *indices, *inputs
        )  # fmt: skip
        ctx.set_materialize_grads(True)
        share = live_log_z.new_zeros(0 if call.clamp is None else ids.shape[0])
        if live_sites is None:
            return live_logp, live_log_z, live_plain, share
        selected_logp, log_z, plain = (
            x.new_zeros(ids.shape[0], *x.shape[1:]).index_copy_(0, live_sites, x)
            for x in (live_logp, live_log_z, live_plain)
        )
        return selected_logp, log_z, plain, share

    @staticmethod
    @first_order_only
    def backward(  # type: ignore[override]
        ctx: Any, logp_grad: Tensor, log_z_grad: Tensor, plain_grad: Tensor, share_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        weight, bias, ids, log_z, live_sites, *rest = ctx.saved_tensors
        indices, inputs = rest[: call.tables], rest[call.tables :]
        refuse_freed((weight, bias, *inputs), ctx.shapes)
        tables = [RowTable(values, index) for values, index in zip(inputs, indices)]
        program = RowProgram(tables, inputs[call.tables :], call.steps)
        with call.counters.timed("backward", ids.device), no_autocast(ids.device):
            adjoints, log_z_adjoints, plain_adjoints = _rows(
                live_sites, logp_grad, log_z_grad, plain_grad
            )
            limits = None
            if call.clamp is not None:
                limits = call.clamp * _rows(live_sites, share_grad)[0].abs()
            kept = _sites_that_matter(adjoints, log_z_adjoints, plain_adjoints, log_z, limits, call)
            ids, log_z, adjoints, log_z_adjoints, plain_adjoints = _rows(
                kept, ids, log_z, adjoints, log_z_adjoints, plain_adjoints
            )
            if limits is not None:
                (limits,) = _rows(kept, limits)
            for position in (live_sites, kept):
                program = program if position is None else program.at(position)
            head = call.head(weight, bias)
            scale = None
            if head.gemms.operands == torch.float16:
                scale = scale_for_float16(adjoints, log_z_adjoints, plain_adjoints)
                adjoints, log_z_adjoints, plain_adjoints = (
                    x * scale for x in (adjoints, log_z_adjoints, plain_adjoints)
                )
                limits = None if limits is None else limits * scale
            _, _, _, needs_weight, needs_bias, _, *needs = ctx.needs_input_grad
            needs = [needs_weight, needs_bias, *needs]

            def in_tiles(call: Call) -> tuple[TilePlan, tile_loop.Gradients]:
                plan = call.plan(program, head, ids.shape[0], with_gradients=True)
                of_weight, of_bias, *of_inputs = (
                    t.new_zeros(t.shape, dtype=call.dtype) if need else None
                    for t, need in zip((weight, bias, *inputs), needs)
                )
                wanted = tile_loop.Gradients(
                    of_inputs[: call.tables], of_inputs[call.tables :], of_weight, of_bias
                )
                tile_loop.backward(
                    program, head, ids, log_z, adjoints, log_z_adjoints,
                    plan, call.kernels, wanted, limits, scale, plain_adjoints,
                )  # fmt: skip
                return plan, wanted

            plan, wanted = with_one_retry(in_tiles, call)
            if scale is not None:
                for total in (wanted.weight, wanted.bias):
                    if total is not None:
                        total.div_(scale)
        tiles = len(plan.row_tiles()) * len(plan.class_tiles())
        call.counters.add(tiles_backward=tiles, sites_backward=ids.shape[0])
        return (
            None,
            None,
            None,
            None if wanted.weight is None else wanted.weight.to(weight.dtype),
            None if wanted.bias is None else wanted.bias.to(bias.dtype),
            None,
            *(
                None if g is None else g.to(t.dtype)
                for g, t in zip((*wanted.tables, *wanted.parameters), inputs)
            ),
        )


def _sites_that_matter(
    adjoints: Tensor,
    log_z_adjoints: Tensor,
    plain_adjoints: Tensor,
    log_z: Tensor,
    limits: Tensor | None,
    call: Call,
) -> Tensor | None:
    """Rows of ``adjoints`` whose backward is computed, ascending, None for all; counts the mass.

    Where gradients are clipped to ``limits``, a site counts for no more than is left of it.
    """
    sizes = adjoints.double().abs()
    if limits is not None:
        sizes = sizes.minimum(limits.double().unsqueeze(1))
    mass = sizes.sum(dim=1) + log_z_adjoints.double().abs()
    if plain_adjoints.shape[1]:
        mass += plain_adjoints.double().abs().sum(dim=1)
    total = mass.sum()
    tolerance = call.options.tolerance_in(call.dtype)
    if tolerance == 0 and not call.is_part and waits_for_values(mass.device):
        # How many adjoints are exactly 0 is not worth waiting for.
        total = torch.where(total.isfinite(), total, torch.zeros_like(total))
        call.counters.add_when_read(adjoint_mass=total)
        return None
    # Sites without a normaliser go last and are kept, adjoint 0 or not: their gradient is NaN in
    # the dense expression, and that must show. So is that of a site whose logits are all -inf.
    broken = log_z.isnan() | log_z.isposinf() if call.is_part else ~log_z.isfinite()
    order = torch.where(broken, torch.full_like(mass, torch.inf), mass).argsort()
    ascending = mass[order]
    running = _running_sum(ascending)
    # A non-finite total says nothing about the single sites: then only exact zeros are left out.
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


def waits_for_values(device: torch.device) -> bool:
    """Whether the host waits for the device where it reads a value."""
    return device.type == "cuda"


def _rows(position: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    """Rows of tensors, int64 ``[n]``, None for all; contiguous."""
    if position is None:
        return [t.contiguous() for t in tensors]
    return [t.index_select(0, position) for t in tensors]
