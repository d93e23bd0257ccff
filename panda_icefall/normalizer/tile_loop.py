"""The loop over tiles, forward and backward: GEMMs, and the chosen row kernels between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.normalizer.engine import RowKernels
from panda_icefall.normalizer.head import LinearHead
from panda_icefall.normalizer.plan import TilePlan
from panda_icefall.normalizer.program import RowProgram
from panda_icefall.normalizer.tensor_cores import tensor_cores
from panda_icefall.normalizer.torch_rows import finite_or_zero


def _gather(program: RowProgram, sites: Tensor) -> list[Tensor]:
    """Rows ``[n, X]`` of every table for the given sites ``[n]``."""
    rows = []
    for table in program.tables:
        index = sites if table.index is None else table.index.index_select(0, sites)
        rows.append(table.values.detach().index_select(0, index))
    return rows


def _logits(
    hidden: Tensor, head: LinearHead, weight: Tensor | None, bias: Tensor | None, scratch: Tensor
) -> Tensor:
    """``[n, c]`` of hidden rows ``[n, H]`` and a tile ``[c, H]`` of the head, in the scratch."""
    shape = hidden.shape[0], (hidden if weight is None else weight.t()).shape[1]
    out = scratch[: shape[0] * shape[1]].view(shape)
    if weight is None:
        return out.copy_(hidden)
    with tensor_cores(head.is_half):
        if bias is None:
            return torch.mm(hidden, weight.t(), out=out)
        return torch.addmm(bias, hidden, weight.t(), out=out)


def forward(
    program: RowProgram,
    head: LinearHead,
    sites: Tensor,
    ids: Tensor,
    plan: TilePlan,
    kernels: RowKernels,
) -> tuple[Tensor, Tensor]:
    """Selected log-probs and normaliser of the given sites.

    Args:
      sites: ``[n]`` int64, the sites to evaluate.
      ids: ``[n, K]`` int64 class ids.
      plan: tiles for ``n`` sites.

    Returns:
      ``[n, K]`` log-probs and ``[n]`` log_z (nats), in the head's dtype.
    """
    dtype, device = head.dtype, ids.device
    selected_logp = torch.empty(ids.shape, dtype=dtype, device=device)
    log_z = torch.empty(ids.shape[0], dtype=dtype, device=device)
    scratch = torch.empty(plan.tile_rows * plan.tile_classes, dtype=dtype, device=device)
    parameters = [p.detach() for p in program.parameters]
    for begin, end in plan.row_tiles():
        hidden = head.rows(program.replay(_gather(program, sites[begin:end]), parameters))
        tile_ids = ids[begin:end]
        # Online log-sum-exp over class tiles (one pass when the classes are not split).
        peak = torch.full((end - begin,), float("-inf"), dtype=dtype, device=device)
        total = torch.zeros_like(peak)
        chosen = torch.zeros(tile_ids.shape, dtype=dtype, device=device)
        for low, high in plan.class_tiles():
            logits = _logits(hidden, head, *head.tile(low, high), scratch)
            kernels.fold(logits, tile_ids, low, peak, total, chosen)
        shift, log_total = finite_or_zero(peak), total.log_()
        log_z[begin:end] = shift + log_total
        # Not chosen - log_z: with large logits the two small differences round less.
        selected_logp[begin:end] = (chosen - shift[:, None]) - log_total[:, None]
    return selected_logp, log_z


@dataclass
class Gradients:
    """Gradient buffers in the accumulation dtype; None where no gradient is wanted."""

    tables: list[Tensor | None]
    parameters: list[Tensor | None]
    weight: Tensor | None
    bias: Tensor | None


def backward(
    program: RowProgram,
    head: LinearHead,
    sites: Tensor,
    ids: Tensor,
    log_z: Tensor,
    adjoints: Tensor,
    log_z_adjoints: Tensor,
    plan: TilePlan,
    kernels: RowKernels,
    wanted: Gradients,
    limits: Tensor | None = None,
) -> None:
    """Add the gradients of ``sum(adjoints * selected_logp) + sum(log_z_adjoints * log_z)``.

    With p the softmax row and a, c the adjoints of a site, its logits' gradient is
    ``sum_k a_k [v = id_k] + (c - sum_k a_k) p_v``; the logits are recomputed tile by tile.

    Args:
      sites, ids, log_z: ``[n]``, ``[n, K]``, ``[n]`` of the sites to go through.
      adjoints, log_z_adjoints: ``[n, K]`` and ``[n]``.
      plan: tiles for ``n`` sites.
      wanted: zero-filled buffers to add into.
      limits: ``[n]``, bounds of the absolute gradient of a site's logits; None: none.
    """
    scratch = torch.empty(plan.tile_rows * plan.tile_classes, dtype=head.dtype, device=ids.device)
    softmax_scale = log_z_adjoints - adjoints.sum(dim=1)
    wants_rows = any(g is not None for g in (*wanted.tables, *wanted.parameters))
    for begin, end in plan.row_tiles():
        tile_sites, tile_ids, tile_adjoints = sites[begin:end], ids[begin:end], adjoints[begin:end]
        with torch.set_grad_enabled(wants_rows):
            rows = [
                r.requires_grad_(wants_rows and r.is_floating_point())
                for r in _gather(program, tile_sites)
            ]
            leaves = [
                p.detach().requires_grad_(g is not None)
                for p, g in zip(program.parameters, wanted.parameters)
            ]
            output = program.replay(rows, leaves)
        hidden = head.rows(output.detach())
        hidden_grad = torch.zeros_like(hidden) if wants_rows and head.weight is not None else None
        for low, high in plan.class_tiles():
            weight, bias = head.tile(low, high)
            grad = _logits(hidden, head, weight, bias, scratch)
            kernels.gradient_(
                grad, tile_ids, low, log_z[begin:end], softmax_scale[begin:end], tile_adjoints
            )
            if limits is not None:
                bound = limits[begin:end, None]
                torch.maximum(torch.minimum(grad, bound, out=grad), -bound, out=grad)
            if weight is None:
                hidden_grad = grad if wants_rows else None
                continue
            with tensor_cores(head.is_half):
                if hidden_grad is not None:
                    hidden_grad.addmm_(grad, weight)
                if wanted.weight is not None:
                    wanted.weight[low:high].addmm_(grad.t(), hidden)
            if wanted.bias is not None:
                wanted.bias[low:high] += grad.sum(dim=0)
        # Rows of steps without a derivative, such as comparisons, take no gradient.
        if hidden_grad is not None and output.requires_grad:
            _rows_backward(program, tile_sites, rows, leaves, output, hidden_grad, wanted)


def _rows_backward(
    program: RowProgram,
    sites: Tensor,
    rows: Sequence[Tensor],
    leaves: Sequence[Tensor],
    output: Tensor,
    output_grad: Tensor,
    wanted: Gradients,
) -> None:
    """Add what a tile's hidden gradient ``[n, H]`` gives to the program's inputs."""
    targets: list[tuple[Tensor, Tensor, Tensor | None]] = []  # input, buffer, buffer rows
    for table, row, buffer in zip(program.tables, rows, wanted.tables):
        if buffer is not None:
            index = sites if table.index is None else table.index.index_select(0, sites)
            targets.append((row, buffer, index))
    for leaf, buffer in zip(leaves, wanted.parameters):
        if buffer is not None:
            targets.append((leaf, buffer, None))
    grads = torch.autograd.grad(
        output, [t[0] for t in targets], output_grad.to(output.dtype), allow_unused=True
    )
    for (_, total, at), grad in zip(targets, grads):
        if grad is None:
            continue
        if at is None:
            total += grad
        else:
            total.index_add_(0, at, grad.to(total.dtype))
