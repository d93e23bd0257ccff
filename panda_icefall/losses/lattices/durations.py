"""Lattices whose arcs pass several frames: multi-blank transducers, and tokens with durations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panda_icefall.lattice.durations import DurationArcs, duration_recursion
from panda_icefall.losses.heads import HeadLogProbs
from panda_icefall.losses.sites import LatticeSites

NEG_INF = float("-inf")


def multi_blank_loss(
    found: HeadLogProbs, sites: LatticeSites, big_blank_durations: Sequence[int], sigma: float
) -> Tensor:
    """The loss of a multi-blank transducer, on a full lattice or a pruned one.

    Args:
      found: of ``panda_icefall.losses.heads.MultiBlankHead``.
      sites: of a regular lattice that begins at its first frame and state.
      big_blank_durations: frames that each big blank passes.
      sigma: subtracted from every log-prob ("under-normalisation"), nats.

    Returns:
      The loss in nats, ``[B]`` or a scalar, in the dtype of the log-probs.

    Source:
      Xu et al., "Multi-blank transducers for speech recognition" (arXiv:2211.03541).
    """
    assert found.others is not None
    symbols, blanks, others = _grids(found, sites, sigma)
    arcs = [DurationArcs(symbols, 0, is_symbol=True), DurationArcs(blanks, 1, is_symbol=False)]
    arcs += [
        DurationArcs(logp - sigma, duration, is_symbol=False)
        for logp, duration in zip(others.unbind(-1), big_blank_durations)
    ]
    return _loss(arcs, sites, found.target.dtype)


def tdt_loss(
    found: HeadLogProbs, sites: LatticeSites, durations: Sequence[int], sigma: float
) -> Tensor:
    """The loss of a token-and-duration transducer, on a full lattice or a pruned one.

    Args:
      found: of ``panda_icefall.losses.heads.TdtHead``.
      sites: of a regular lattice that begins at its first frame and state.
      durations: frames that each duration passes; a blank cannot have 0.
      sigma: subtracted from the tokens' log-probs, nats.

    Returns:
      The loss in nats, ``[B]`` or a scalar, in the dtype of the log-probs.

    Source:
      Xu et al., "Efficient sequence transduction by jointly predicting tokens and durations"
      (arXiv:2304.06795).
    """
    symbols, blanks, others = _grids(found, sites, sigma)
    arcs = []
    for logp, duration in zip(others.unbind(-1), durations):
        arcs.append(DurationArcs(symbols + logp, duration, is_symbol=True))
        if duration > 0:
            arcs.append(DurationArcs(blanks + logp, duration, is_symbol=False))
    return _loss(arcs, sites, found.target.dtype)


def _grids(found: HeadLogProbs, sites: LatticeSites, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Symbols, blanks ``[B, T, S + 1]`` and what else there is ``[B, T, S + 1, n]``, float64."""
    assert found.others is not None
    spec = sites.spec
    symbols = sites.spread(spec.emitted(found.target).double() - sigma, NEG_INF)
    if spec.delay_penalty > 0.0:
        earliness = spec.earliness(symbols, sites.T, sites.T)
        symbols = symbols + earliness.unsqueeze(2) * spec.delay_penalty
    blanks = sites.spread(found.blank.double() - sigma, NEG_INF)
    return symbols, blanks, sites.spread(found.others.double(), NEG_INF)


def _loss(arcs: list[DurationArcs], sites: LatticeSites, dtype: torch.dtype) -> Tensor:
    spec = sites.spec
    B, S = spec.symbols.shape
    boundary = spec.boundary
    if boundary is None:
        frames, states = (spec.symbols.new_full((B,), n) for n in (sites.T, S))
    else:
        frames, states = boundary[:, 3], boundary[:, 2]
    scores = duration_recursion(arcs, frames=frames, states=states)
    return spec.loss_of(scores).to(dtype)
