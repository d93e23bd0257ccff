"""Heads: from the logits of a site to the log-probs that a lattice reads. One file for each."""

from panda_icefall.losses.heads.base import Head, HeadLogProbs
from panda_icefall.losses.heads.hat import HatHead
from panda_icefall.losses.heads.multi_blank import MultiBlankHead
from panda_icefall.losses.heads.plain import PlainHead
from panda_icefall.losses.heads.tdt import TdtHead

__all__ = [
    "HatHead",
    "Head",
    "HeadLogProbs",
    "MultiBlankHead",
    "PlainHead",
    "TdtHead",
    "head_of",
]


def head_of(use_hat_loss: bool) -> Head:
    """The head that k2's ``use_hat_loss`` asks for."""
    return HatHead() if use_hat_loss else PlainHead()
