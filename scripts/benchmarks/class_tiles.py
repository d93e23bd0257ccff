"""BASELINE: class tiles over all sites, the scheme of the PANDA paper's reference.

The hidden rows ``[N, H]`` of all sites, padding included, are kept. Forward passes over the classes
a tile at a time with an online log-sum-exp; backward computes each tile's logits again, for all
sites, and adds up the three gradients in float32. A baseline: what is measured is the
published algorithm, not the authors' code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.sites import SiteInputs

TILE_CLASSES = 512


def class_tiled_log_probs(
    sites: SiteInputs, tile_classes: int = TILE_CLASSES
) -> tuple[Tensor, Tensor]:
    """Log-probs of the next symbol and of blank at every site, in nats.

    Equal to ``F.linear(hidden, weight, bias).log_softmax(1)`` gathered at the ids, with one
    ``[N, tile_classes]`` tile of logits at a time.

    Args:
      sites: N sites over C classes.
      tile_classes: classes of a tile.

    Returns:
      ``(target, blank)``, each ``[B, T, s_range]``.
    """
    hidden = sites.hidden()
    logp = _ClassTiledLogProbs.apply(hidden, sites.weight, sites.bias, sites.ids, tile_classes)
    return sites.on_grid(logp)


class _ClassTiledLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, tile_classes: int
    ) -> Tensor:
        # float32 copies of half inputs; float32 ones are used as they are, in favour of the
        # baseline.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        rows, head, offset = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
        N = rows.shape[0]
        peak = rows.new_full((N, 1), float("-inf"))
        total = rows.new_zeros(N, 1)
        chosen = rows.new_zeros(ids.shape)
        for low in range(0, head.shape[0], tile_classes):
            logits = _tile(rows, head, offset, low, tile_classes)
            inside, column = _inside(ids, low, logits.shape[1])
            chosen = torch.where(inside, logits.gather(1, column), chosen)
            raised = torch.maximum(peak, logits.amax(dim=1, keepdim=True))
            total = total * (peak - raised).exp()
            total += logits.sub_(raised).exp_().sum(dim=1, keepdim=True)
            peak = raised
        log_z = peak + total.log()
        ctx.save_for_backward(hidden, weight, bias, ids, log_z)
        ctx.tile_classes = tile_classes
        return chosen - log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoints: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, log_z = ctx.saved_tensors
        rows, head, offset = (t.to(log_z.dtype) for t in (hidden, weight, bias))
        hidden_grad, head_grad = torch.zeros_like(rows), torch.zeros_like(head)
        offset_grad = torch.zeros_like(offset)
        scale = -adjoints.sum(dim=1, keepdim=True)
        for low in range(0, head.shape[0], ctx.tile_classes):
            grad = _tile(rows, head, offset, low, ctx.tile_classes)
            grad.sub_(log_z).exp_().mul_(scale)
            high = low + grad.shape[1]
            inside, column = _inside(ids, low, grad.shape[1])
            grad.scatter_add_(1, column, adjoints.masked_fill(~inside, 0.0))
            hidden_grad.addmm_(grad, head[low:high])
            head_grad[low:high] = grad.t() @ rows
            offset_grad[low:high] = grad.sum(dim=0)
        return (
            hidden_grad.to(hidden.dtype),
            head_grad.to(weight.dtype),
            offset_grad.to(bias.dtype),
            None,
            None,
        )


def _tile(rows: Tensor, head: Tensor, offset: Tensor, low: int, tile_classes: int) -> Tensor:
    """Logits ``[N, c]`` of the classes from ``low`` on."""
    high = low + tile_classes
    return torch.addmm(offset[low:high], rows, head[low:high].t())


def _inside(ids: Tensor, low: int, classes: int) -> tuple[Tensor, Tensor]:
    """Which ids lie in the tile, and their column there (0 where they do not)."""
    column = ids - low
    inside = (column >= 0) & (column < classes)
    return inside, column.masked_fill(~inside, 0)
