"""Exact selected log-probs and their normaliser, computed in tiles, forward and backward."""

from panda_icefall.normalizer.counters import TileCounters
from panda_icefall.normalizer.op import selected_log_probs
from panda_icefall.normalizer.oracle import dense_selected_log_probs
from panda_icefall.normalizer.plan import DEFAULT_WORKSPACE_BYTES, TilePlan
from panda_icefall.normalizer.program import RowProgram, RowTable, Slot, Step

__all__ = [
    "DEFAULT_WORKSPACE_BYTES",
    "RowProgram",
    "RowTable",
    "Slot",
    "Step",
    "TileCounters",
    "TilePlan",
    "dense_selected_log_probs",
    "selected_log_probs",
]
