"""The simple and the smoothed loss in tiles, from the inputs of the projections to classes."""

from panda_icefall.losses.simple_tiled.loss import (
    selected_rnnt_loss_smoothed,
    tiled_rnnt_loss_smoothed,
)

__all__ = ["selected_rnnt_loss_smoothed", "tiled_rnnt_loss_smoothed"]
