"""The tiles in plain torch, on CPU and CUDA: the reference that faster engines must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.normalizer.plan import TilePlan
from panda_icefall.normalizer.program import RowProgram


@dataclass(frozen=True)
class Head:
    """The last linear of a joiner in the dtype it is computed in.

    Attributes:
      weight: ``[C, H]`` in the accumulation dtype (float32, or float64 for float64 inputs).
      bias: ``[C]`` of the same dtype, or None.
      row_dtype: dtype that hidden rows are rounded to before they meet the weight: what autocast
        would do. None leaves them.
    """

    weight: Tensor
    bias: Tensor | None
    row_dtype: torch.dtype | None = None

    @classmethod
    def cast(
        cls, weight: Tensor, bias: Tensor | None, row_dtype: torch.dtype | None, dtype: torch.dtype
    ) -> Head:
        """Round the parameters as autocast would, then widen: products of half values are exact."""

        def convert(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            return (tensor if row_dtype is None else tensor.to(row_dtype)).to(dtype)

        return cls(convert(weight), None if bias is None else convert(bias), row_dtype)

    def rows(self, hidden: Tensor) -> Tensor:
        """Hidden rows ``[n, H]`` as the GEMM takes them."""
        hidden = hidden if self.row_dtype is None else hidden.to(self.row_dtype)
        return hidden.to(self.weight.dtype).contiguous()

    def logits(self, hidden: Tensor, low: int, high: int, scratch: Tensor) -> Tensor:
        """``[n, high - low]`` logits of the classes in ``[low, high)``, written into scratch."""
        out = scratch[: hidden.shape[0] * (high - low)].view(hidden.shape[0], high - low)
        weight = self.weight[low:high].t()
        if self.bias is None:
            return torch.mm(hidden, weight, out=out)
        return torch.addmm(self.bias[low:high], hidden, weight, out=out)


def _gather(program: RowProgram, sites: Tensor) -> list[Tensor]:
    """Rows ``[n, X]`` of every table for the given sites ``[n]``."""
    rows = []
    for table in program.tables:
        index = sites if table.index is None else table.index.index_select(0, sites)
        rows.append(table.values.detach().index_select(0, index))
    return rows


def _in_tile(ids: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Which selected ids ``[n, K]`` lie in ``[low, high)``, and their columns (0 where not)."""
    inside = (ids >= low) & (ids < high)
    return inside, torch.where(inside, ids - low, torch.zeros_like(ids))


def forward(
    program: RowProgram, head: Head, sites: Tensor, ids: Tensor, plan: TilePlan
) -> tuple[Tensor, Tensor]:
    """Selected log-probs and normaliser of the given sites.

    Args:
      sites: ``[n]`` int64, the sites to evaluate.
      ids: ``[n, K]`` int64 class ids.
      plan: tiles for ``n`` sites.

    Returns:
      ``[n, K]`` log-probs and ``[n]`` log_z (nats), in the head's dtype.
    """
    dtype, device = head.weight.dtype, head.weight.device
    selected_logp = torch.empty(ids.shape, dtype=dtype, device=device)
    log_z = torch.empty(ids.shape[0], dtype=dtype, device=device)
    scratch = torch.empty(plan.tile_rows * plan.tile_classes, dtype=dtype, device=device)
    parameters = [p.detach() for p in program.parameters]
    for begin, end in plan.row_tiles():
        hidden = head.rows(program.replay(_gather(program, sites[begin:end]), parameters))
        tile_ids = ids[begin:end]
        # Online log-sum-exp over class tiles (one pass when the classes are not split).
        peak = torch.full((end - begin, 1), float("-inf"), dtype=dtype, device=device)
        total = torch.zeros_like(peak)
        chosen = torch.zeros(tile_ids.shape, dtype=dtype, device=device)
        for low, high in plan.class_tiles():
            logits = head.logits(hidden, low, high, scratch)
            inside, column = _in_tile(tile_ids, low, high)
            chosen = torch.where(inside, logits.gather(1, column), chosen)
            new_peak = torch.maximum(peak, logits.amax(dim=1, keepdim=True))
            # As torch.logsumexp: an infinite maximum is not subtracted, so that rows of only
            # -inf (or with a +inf) give the infinities of the dense expression and no NaN.
            shift = torch.where(torch.isinf(new_peak), torch.zeros_like(new_peak), new_peak)
            total = total * (peak - shift).exp_()
            total += logits.sub_(shift).exp_().sum(dim=1, keepdim=True)
            peak = new_peak
        log_total = total.log_()
        log_z[begin:end] = (shift + log_total).squeeze(1)
        # Not chosen - log_z: with large logits the two small differences round less.
        selected_logp[begin:end] = (chosen - shift) - log_total
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
    head: Head,
    sites: Tensor,
    ids: Tensor,
    log_z: Tensor,
    adjoints: Tensor,
    log_z_adjoints: Tensor,
    plan: TilePlan,
    wanted: Gradients,
) -> None:
    """Add the gradients of ``sum(adjoints * selected_logp) + sum(log_z_adjoints * log_z)``.

    With p the softmax row and a, c the adjoints of a site, its logits' gradient is
    ``sum_k a_k [v = id_k] + (c - sum_k a_k) p_v``; the logits are recomputed tile by tile.

    Args:
      sites, ids, log_z: ``[n]``, ``[n, K]``, ``[n]`` of the sites to go through.
      adjoints, log_z_adjoints: ``[n, K]`` and ``[n]``.
      plan: tiles for ``n`` sites.
      wanted: zero-filled buffers to add into.
    """
    dtype, device = head.weight.dtype, head.weight.device
    scratch = torch.empty(plan.tile_rows * plan.tile_classes, dtype=dtype, device=device)
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
        hidden_grad = torch.zeros_like(hidden) if wants_rows else None
        for low, high in plan.class_tiles():
            grad = head.logits(hidden, low, high, scratch)
            grad.sub_(log_z[begin:end, None]).exp_().mul_(softmax_scale[begin:end, None])
            inside, column = _in_tile(tile_ids, low, high)
            grad.scatter_add_(
                1, column, torch.where(inside, tile_adjoints, torch.zeros_like(tile_adjoints))
            )
            if hidden_grad is not None:
                hidden_grad.addmm_(grad, head.weight[low:high])
            if wanted.weight is not None:
                wanted.weight[low:high].addmm_(grad.t(), hidden)
            if wanted.bias is not None:
                wanted.bias[low:high] += grad.sum(dim=0)
        if hidden_grad is not None:
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
    """Send a tile's hidden gradient ``[n, H]`` back through its program into the buffers."""
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
