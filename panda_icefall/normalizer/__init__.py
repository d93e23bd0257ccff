"""Exact selected log-probs and their normaliser, computed in tiles, forward and backward."""

from panda_icefall.normalizer.checks import KnownSites
from panda_icefall.normalizer.counters import TileCounters, TileTotals
from panda_icefall.normalizer.head import ClassRanges, RowLogits
from panda_icefall.normalizer.op import selected_log_probs
from panda_icefall.normalizer.options import TileOptions
from panda_icefall.normalizer.plan import TilePlan
from panda_icefall.normalizer.program import RowProgram, RowTable, Slot, Step
from panda_icefall.normalizer.workspace import auto_workspace_bytes

__all__ = [
    "ClassRanges",
    "KnownSites",
    "RowLogits",
    "RowProgram",
    "RowTable",
    "Slot",
    "Step",
    "TileCounters",
    "TileOptions",
    "TilePlan",
    "TileTotals",
    "auto_workspace_bytes",
    "selected_log_probs",
]
