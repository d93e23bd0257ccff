"""How the losses of an unmodified recipe are routed: what k2's functions are replaced by."""

from panda_icefall.routing.after_losses import followed_losses
from panda_icefall.routing.computed_losses import Computed, ComputedLoss, ComputedSimpleLoss
from panda_icefall.routing.diagnosis import Finding, diagnosed
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
from panda_icefall.routing.simple_verification import deviations_of_simple
from panda_icefall.routing.status import LossTotals, Status
from panda_icefall.routing.verification import Deviation, deviations_of

__all__ = [
    "Computed",
    "ComputedLoss",
    "ComputedSimpleLoss",
    "Deviation",
    "Finding",
    "LossTotals",
    "PandaError",
    "Status",
    "UnknownSignatureError",
    "apply",
    "deviations_of",
    "deviations_of_simple",
    "diagnosed",
    "find_ctc_heads",
    "find_projections",
    "followed_losses",
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
