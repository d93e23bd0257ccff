"""``selected_log_probs``: validate, plan, run the engine, and the autograd node around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.first_order import first_order_only
from panda_icefall.normalizer import tile_loop
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.normalizer.checks import check_form, live_sites
from panda_icefall.normalizer.counters import TileCounters
from panda_icefall.normalizer.engine import RowKernels, row_kernels
from panda_icefall.normalizer.head import Head
from panda_icefall.normalizer.plan import USEFUL_SIDE, TileCosts, TilePlan
from panda_icefall.normalizer.program import RowProgram, RowTable, Step
from panda_icefall.normalizer.workspace import auto_workspace_bytes


@opaque
def selected_log_probs(
    rows: Tensor | RowProgram,
    weight: Tensor | None,
    bias: Tensor | None,
    selected_ids: Tensor,
    *,
    selected_mask: Tensor | None = None,
    live: Tensor | None = None,
    head_dtype: torch.dtype | None = None,
    workspace_bytes: int | None = None,
    adjoint_tolerance: float | None = None,
    counters: TileCounters | None = None,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Exact log-probs of K chosen classes per site, and the normaliser over all classes.

    Equal to ``z = F.linear(rows, weight, bias); log_z = z.logsumexp(1);
    (z.gather(1, selected_ids) - log_z[:, None], log_z)`` without materialising the logits
    ``[N, C]``, forward or backward, nor the hidden rows ``[N, H]`` of a program.

    Args:
      rows: ``[N, H]`` floating point, or the program that computes them.
      weight: ``[C, H]``, of the rows' dtype unless ``head_dtype`` is given. None: the rows are the
        logits, H = C; those of a program exist for the rows of a tile only.
      bias: ``[C]`` floating point, or None; added in the dtype of the outputs.
      selected_ids: ``[N, K]`` int64 in ``[0, C)``, K >= 1. Duplicates in a row are legal.
      selected_mask: ``[N, K]`` bool; where False the log-prob is 0, its id is not read and no
        gradient flows. None: all are selected.
      live: ``[N]`` bool; sites where False are never evaluated: outputs and gradients are 0.
        None: all are.
      head_dtype: dtype that rows and weight are rounded to first, as autocast does for a linear
        layer; arithmetic after that is in float32.
      workspace_bytes: upper bound of a tile's scratch, in bytes. None: by the device, see
        ``auto_workspace_bytes``.
      adjoint_tolerance: in backward, sites with the smallest absolute adjoints are left out as long
        as the mass left out is at most this share of the total, in ``[0, 1)``; sites with adjoint 0
        always are. None: half the eps of the accumulation dtype (2^-24 for float32). 0: none.
      counters: totals to add to.
      engine: row kernels to use: "torch", "triton", or "auto", which is Triton on CUDA where it is
        installed and torch otherwise.

    Returns:
      ``selected_logp`` ``[N, K]`` and ``log_z`` ``[N]`` in nats, float64 for float64 inputs and
      float32 otherwise; differentiable once with respect to rows, weight and bias.

    Raises:
      ValueError: a shape, an id, the tolerance, the workspace or the engine is out of range.
      TypeError: a dtype is wrong.
      MissingEngineError: Triton is asked for and not installed.

    Note:
      Sums over sites accumulate in the output's dtype. Saved for backward: the program's inputs,
      ids and log_z. On CUDA forward syncs with the host once, for the checks and the number of
      live sites, and backward once, for the number of sites that matter. Equal inputs give bitwise
      equal results on a CPU, and on CUDA under ``torch.use_deterministic_algorithms`` (backward
      then syncs three times); between runs only with a ``workspace_bytes`` of their own, because
      the one by the device looks at the free memory of a GPU.
    """
    program = RowProgram.of(rows)
    check_form(program, weight, bias, selected_ids, selected_mask, live, head_dtype)
    if adjoint_tolerance is not None and not 0 <= adjoint_tolerance < 1:
        raise ValueError(f"adjoint_tolerance: got {adjoint_tolerance}, expected 0 <= it < 1")
    device = selected_ids.device
    kernels = row_kernels(engine, device)
    if selected_mask is not None:
        selected_ids = torch.where(selected_mask, selected_ids, torch.zeros_like(selected_ids))
    classes = program.width if weight is None else weight.shape[0]
    sites = live_sites(program, classes, selected_ids, live)
    double = torch.float64 in (program.dtype, program.dtype if weight is None else weight.dtype)
    dtype = torch.float64 if double and head_dtype is None else torch.float32
    if adjoint_tolerance is None:
        adjoint_tolerance = torch.finfo(dtype).eps / 2
    counters = TileCounters() if counters is None else counters
    evaluated = program.sites if sites is None else sites.shape[0]
    counters.sites += program.sites
    counters.sites_evaluated += evaluated
    is_auto = workspace_bytes is None
    if workspace_bytes is None:
        workspace_bytes = auto_workspace_bytes(device)
    call = _Call(
        program.steps, len(program.tables), classes, head_dtype, dtype, workspace_bytes, is_auto,
        adjoint_tolerance, counters, kernels,
    )  # fmt: skip
    for with_gradients in (False, True):  # refuses a workspace that is too small for either
        call.plan(program, call.head(weight, bias), evaluated, with_gradients)
    tables = [table.values for table in program.tables]
    selected_logp, log_z = _SelectedLogProbs.apply(
        call, program, sites, weight, bias, selected_ids, *tables, *program.parameters
    )
    if selected_mask is not None:
        selected_logp = selected_logp.masked_fill(~selected_mask, 0.0)
    return selected_logp, log_z


@dataclass(frozen=True)
class _Call:
    """What one call's forward and backward share besides tensors, which autograd must hold."""

    steps: Sequence[Step]
    tables: int
    classes: int
    head_dtype: torch.dtype | None
    dtype: torch.dtype
    workspace_bytes: int
    is_auto: bool
    adjoint_tolerance: float
    counters: TileCounters
    kernels: RowKernels

    def head(self, weight: Tensor | None, bias: Tensor | None) -> Head:
        return Head.of(weight, bias, self.head_dtype, self.dtype)

    def plan(self, program: RowProgram, head: Head, sites: int, with_gradients: bool) -> TilePlan:
        costs = TileCosts.of(
            program, torch.finfo(self.dtype).bits // 8, casts_weight=head.casts_weight,
            with_gradients=with_gradients,
        )  # fmt: skip
        workspace_bytes, splits_classes = self.workspace_bytes, head.weight is not None
        if self.is_auto:
            # However wide the joiner is, tiles that a GEMM is good for.
            fewest = min(self.classes, USEFUL_SIDE) if splits_classes else self.classes
            rows = USEFUL_SIDE if splits_classes else 1
            workspace_bytes = max(workspace_bytes, costs.tile_bytes(rows, fewest))
        return TilePlan.make(
            sites, self.classes, costs, workspace_bytes, splits_classes=splits_classes
        )


class _SelectedLogProbs(torch.autograd.Function):
    """Autograd node; its ``inputs`` are the program's tables and then its parameters."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        call: _Call,
        program: RowProgram,
        live_sites: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        ids: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        device = ids.device
        sites = _all_sites(ids) if live_sites is None else live_sites
        head = call.head(weight, bias)
        plan = call.plan(program, head, sites.shape[0], with_gradients=False)
        with call.counters.timed("forward", device), no_autocast(device):
            live_ids = ids if live_sites is None else ids.index_select(0, sites)
            live_logp, live_log_z = tile_loop.forward(
                program, head, sites, live_ids, plan, call.kernels
            )
        call.counters.tiles_forward += len(plan.row_tiles()) * len(plan.class_tiles())
        ctx.call = call
        indices = [table.index for table in program.tables]
        ctx.save_for_backward(
            weight, bias, live_ids, live_log_z, live_sites, *indices, *inputs
        )  # fmt: skip
        ctx.set_materialize_grads(True)
        if live_sites is None:
            return live_logp, live_log_z
        selected_logp = live_logp.new_zeros(ids.shape).index_copy_(0, sites, live_logp)
        log_z = live_log_z.new_zeros(ids.shape[0]).index_copy_(0, sites, live_log_z)
        return selected_logp, log_z

    @staticmethod
    @first_order_only
    def backward(  # type: ignore[override]
        ctx: Any, logp_grad: Tensor, log_z_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        weight, bias, ids, log_z, live_sites, *rest = ctx.saved_tensors
        indices, inputs = rest[: call.tables], rest[call.tables :]
        tables = [RowTable(values, index) for values, index in zip(inputs, indices)]
        program = RowProgram(tables, inputs[call.tables :], call.steps)
        with call.counters.timed("backward", ids.device), no_autocast(ids.device):
            sites = _all_sites(ids) if live_sites is None else live_sites
            adjoints, log_z_adjoints = (g.index_select(0, sites) for g in (logp_grad, log_z_grad))
            kept = _sites_that_matter(adjoints, log_z_adjoints, log_z, call)
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
            )  # fmt: skip
        call.counters.tiles_backward += len(plan.row_tiles()) * len(plan.class_tiles())
        call.counters.sites_backward += kept.shape[0]
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
    adjoints: Tensor, log_z_adjoints: Tensor, log_z: Tensor, call: _Call
) -> Tensor:
    """Rows of ``adjoints`` whose backward is computed, ascending; counts the mass."""
    mass = adjoints.double().abs().sum(dim=1) + log_z_adjoints.double().abs()
    # Sites without a normaliser go last and are kept, adjoint 0 or not: their gradient is NaN in
    # the dense expression, and trouble must show.
    broken = log_z.isnan() | log_z.isposinf()
    order = torch.where(broken, torch.full_like(mass, torch.inf), mass).argsort()
    ascending = mass[order]
    running = _running_sum(ascending)
    total = mass.sum()
    # A non-finite total says nothing about the single sites: then only exact zeros are left out.
    limit = torch.where(total.isfinite(), total * call.adjoint_tolerance, torch.zeros_like(total))
    skipped = ((running <= limit) | (ascending == 0)) & ~broken[order]
    left_out = torch.where(skipped, ascending, torch.zeros_like(ascending)).sum()
    count, left_out_mass, total_mass = torch.stack(
        [skipped.sum().double(), left_out, total]
    ).tolist()
    if math.isfinite(total_mass):
        call.counters.adjoint_mass += total_mass
        call.counters.adjoint_mass_skipped += left_out_mass
    # Back in site order: neighbours share table rows.
    return order[int(count) :].sort().values


def _running_sum(numbers: Tensor) -> Tensor:
    """Their cumsum; where results must repeat, by the CPU: CUDA's own is refused there."""
    if numbers.is_cuda and torch.are_deterministic_algorithms_enabled():
        return numbers.cpu().cumsum(dim=0).to(numbers.device)
    return numbers.cumsum(dim=0)


def _all_sites(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[0], device=ids.device)
