"""PANDA for icefall: the pruned RNN-T loss without its ``[B, T, s_range, C]`` logits.

``apply()`` makes k2's pruned loss in this process go through exact selected log-probs computed in
tiles; ``panda-icefall run train.py ... --use-panda 1`` does so for an unmodified recipe.
"""

from panda_icefall.normalizer import selected_log_probs
from panda_icefall.routing import Status, apply, patched, revert, status

__version__ = "0.1.0"

__all__ = ["Status", "apply", "patched", "revert", "selected_log_probs", "status"]
