"""PANDA for icefall: the pruned RNN-T loss without its ``[B, T, s_range, C]`` logits.

``apply()`` makes k2's pruned loss in this process go through exact selected log-probs computed in
tiles; ``panda-icefall run train.py ... --use-panda 1`` does so for an unmodified recipe.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panda_icefall.normalizer import selected_log_probs
    from panda_icefall.routing import (
        Status,
        apply,
        patched,
        pruned_transducer_loss,
        revert,
        status,
        transducer_loss,
    )

__version__ = "0.1.0"

__all__ = [
    "Status",
    "apply",
    "patched",
    "pruned_transducer_loss",
    "revert",
    "selected_log_probs",
    "status",
    "transducer_loss",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for, so that the command can report a missing torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "normalizer" if name == "selected_log_probs" else "routing"
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
