"""The unigram that lm averages to over the states of the batch, in tiles, and its gradient."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import SimpleTilePlan
from panda_icefall.losses.simple_tiled.source import LogitBlock, LogitSource, Parts


def unigram_of(lm: LogitSource, plan: SimpleTilePlan, kernels: ModuleType) -> Tensor:
    """``mean(softmax(lm), dim=(0, 1)) + tiny`` ``[C]``, from two passes over the classes.

    As in k2, the padding of shorter utterances counts as states.

    Args:
      lm: to ``[B, S+1, C]``; its buffers are given back.
      plan: tiles of the states, without any frame.
      kernels: of the tiles' rows.
    """
    unigram, sites = lm.full(lm.classes), 0
    for utterances, _ in plan.blocks_on(lm.device):
        rows = lm.open(utterances, lm.all_rows)
        peak = lm.full(len(utterances), lm.rows, value=float("-inf"))
        mass = lm.full(len(utterances), lm.rows)
        for low, high in plan.class_tiles():
            kernels.fold_(rows.tile(low, high), peak, rows.bias(low, high), mass=mass)
        shares = mass.reciprocal_().flatten()
        for low, high in plan.class_tiles():
            lm_exp = _exp(rows, peak, low, high, kernels).flatten(0, 1)
            unigram[low:high].add_(torch.mv(lm_exp.t(), shares))
        sites += mass.numel()
    lm.release()
    return unigram.div_(sites).add_(torch.finfo(lm.dtype).tiny)


def unigram_backward(
    lm: LogitSource,
    plan: SimpleTilePlan,
    kernels: ModuleType,
    peak: Tensor,
    adjoint: Tensor,
    lm_grads: Parts,
) -> None:
    """Add the gradient of lm that comes through the unigram, in two passes over the classes.

    Args:
      lm, plan, kernels: as in ``unigram_of``.
      peak: ``[B, S+1]``, maxima of lm over the classes.
      adjoint: ``[C]``, derivative of the loss by the unigram.
      lm_grads: gradients to add to.
    """
    for utterances, _ in plan.blocks_on(lm.device):
        rows, block_peak = lm.open(utterances, lm.all_rows, lm_grads), peak[utterances]
        # Summed again: a softmax of tiles of another shape than these would not add up to 1.
        mass, expected = (lm.full(*block_peak.shape) for _ in range(2))
        for low, high in plan.class_tiles():
            lm_exp = _exp(rows, block_peak, low, high, kernels)
            mass += lm_exp.sum(dim=2)
            expected += torch.matmul(lm_exp, adjoint[low:high])
        expected = expected.div_(mass).unsqueeze(2)
        sites = mass.mul_(peak.numel()).unsqueeze(2)
        for low, high in plan.class_tiles():
            lm_exp = _exp(rows, block_peak, low, high, kernels)
            grad = torch.sub(adjoint[low:high], expected, out=lm.buffer("grad", lm_exp.shape))
            tile = lm.gradient_tile(grad)
            rows.add(torch.mul(grad.div_(sites), lm_exp, out=tile), low, high)
        rows.close()


def _exp(rows: LogitBlock, peak: Tensor, low: int, high: int, kernels: ModuleType) -> Tensor:
    return kernels.exp_below_(rows.tile(low, high), peak, rows.bias(low, high))
