"""The unigram that lm averages to over the states of the batch, in tiles, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import SimpleTilePlan
from panda_icefall.losses.simple_tiled.projection import Peaks, Projection, ProjectionGrads


def unigram_of(lm: Projection, plan: SimpleTilePlan) -> Tensor:
    """`mean(softmax(lm), dim=(0, 1)) + tiny` `[C]`, from two passes over the classes.

    As in k2, the padding of shorter utterances counts as states.

    Args:
      lm: projection to `[B, S+1, C]`; its buffers are given back.
      plan: tiles of the states, without any frame.
    """
    B, states, _ = lm.input.shape
    peaks = Peaks.none_of(lm)
    mass = lm.full(B, states, value=1.0)
    for low, high in plan.class_tiles():
        for block in plan.blocks:
            tile = lm.tile(block, states, low, high)
            factor = peaks.raised_by(tile, block, low)
            tile_mass = peaks.exp_below(tile, block).sum(dim=2)
            mass[block.utterances].mul_(factor).add_(tile_mass)
    unigram = lm.full(lm.weight.shape[0])
    for low, high in plan.class_tiles():
        for block in plan.blocks:
            lm_exp = peaks.exp_below(lm.tile(block, states, low, high), block)
            shares = mass[block.utterances].reciprocal().view(-1)
            unigram[low:high] += torch.mv(lm_exp.view(-1, high - low).t(), shares)
    lm.release()
    return unigram.div_(B * states).add_(torch.finfo(lm.dtype).tiny)


def unigram_backward(
    lm: Projection,
    plan: SimpleTilePlan,
    peaks: Peaks,
    adjoint: Tensor,
    lm_grads: ProjectionGrads,
) -> None:
    """Add the gradient of lm that comes through the unigram, in two passes over the classes.

    Args:
      lm, plan: as in `unigram_of`.
      peaks: maxima of lm over the classes.
      adjoint: `[C]`, derivative of the loss by the unigram.
      lm_grads: gradients to add to.
    """
    B, states, _ = lm.input.shape
    # Summed again: a softmax of tiles of another shape than these would not add up to 1.
    mass, expected = lm.full(B, states), lm.full(B, states)
    for low, high in plan.class_tiles():
        for block in plan.blocks:
            lm_exp = peaks.exp_below(lm.tile(block, states, low, high), block)
            mass[block.utterances] += lm_exp.sum(dim=2)
            expected[block.utterances] += torch.matmul(lm_exp, adjoint[low:high])
    expected /= mass
    for low, high in plan.class_tiles():
        for block in plan.blocks:
            lm_exp = peaks.exp_below(lm.tile(block, states, low, high), block)
            grad = lm.buffer("grad", *lm_exp.shape)
            torch.sub(adjoint[low:high], expected[block.utterances].unsqueeze(2), out=grad)
            grad.mul_(lm_exp).div_((mass[block.utterances] * (B * states)).unsqueeze(2))
            lm_grads.add(lm, grad, block, low, high)
