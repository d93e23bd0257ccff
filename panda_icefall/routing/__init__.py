"""How an unmodified recipe gets there: recorded joiners, projections, replaced k2 functions."""

from panda_icefall.routing.errors import PandaError, UnknownSignatureError
from panda_icefall.routing.finding_projections import find_projections
from panda_icefall.routing.observing import observed
from panda_icefall.routing.patch import (
    apply,
    patched,
    patched_module,
    recording_projections,
    reset_counters,
    revert,
    status,
    suspended,
)
from panda_icefall.routing.status import LossTotals, Status

__all__ = [
    "LossTotals",
    "PandaError",
    "Status",
    "UnknownSignatureError",
    "apply",
    "find_projections",
    "observed",
    "patched",
    "patched_module",
    "recording_projections",
    "reset_counters",
    "revert",
    "status",
    "suspended",
]
