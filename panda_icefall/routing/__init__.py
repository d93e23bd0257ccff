"""How the losses of an unmodified recipe are routed: what k2's functions are replaced by."""

from panda_icefall.routing.errors import PandaError, UnknownSignatureError
from panda_icefall.routing.finding_projections import find_ctc_heads, find_projections
from panda_icefall.routing.hosts import patched_module, substituted
from panda_icefall.routing.observing import observed
from panda_icefall.routing.own_loop import pruned_transducer_loss, transducer_loss
from panda_icefall.routing.patch import (
    apply,
    patched,
    recording_projections,
    replace_awaited,
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
    "find_ctc_heads",
    "find_projections",
    "observed",
    "patched",
    "patched_module",
    "pruned_transducer_loss",
    "recording_projections",
    "replace_awaited",
    "reset_counters",
    "revert",
    "status",
    "substituted",
    "suspended",
    "transducer_loss",
]
