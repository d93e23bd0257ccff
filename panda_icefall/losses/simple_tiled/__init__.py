"""The simple and the smoothed loss in tiles, from the inputs of the projections to classes."""

from panda_icefall.losses.simple_tiled.logits import Logits
from panda_icefall.losses.simple_tiled.loss import tiled_rnnt_loss_smoothed
from panda_icefall.losses.simple_tiled.projection import Projection

__all__ = ["Logits", "Projection", "tiled_rnnt_loss_smoothed"]
