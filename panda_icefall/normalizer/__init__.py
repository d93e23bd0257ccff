"""Exact selected log-probs and their normaliser, computed in tiles, forward and backward."""

from panda_icefall.normalizer.counters import TileCounters
from panda_icefall.normalizer.op import selected_log_probs
from panda_icefall.normalizer.oracle import dense_selected_log_probs
from panda_icefall.normalizer.plan import TilePlan
from panda_icefall.normalizer.program import RowProgram, RowTable, Slot, Step
from panda_icefall.normalizer.workspace import auto_workspace_bytes

__all__ = [
    "RowProgram",
    "RowTable",
    "Slot",
    "Step",
    "TileCounters",
    "TilePlan",
    "auto_workspace_bytes",
    "dense_selected_log_probs",
    "selected_log_probs",
]
