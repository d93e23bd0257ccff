"""A stand-in for ``import k2`` where k2 is missing: the transducer functions under k2's names.

from panda_icefall.losses import k2_functions as k2
simple_loss, (px_grad, py_grad) = k2.rnnt_loss_smoothed(..., return_grad=True)
"""

from panda_icefall.lattice import mutual_information_recursion
from panda_icefall.losses.dense import rnnt_loss_pruned
from panda_icefall.losses.pruning import do_rnnt_pruning, get_rnnt_prune_ranges
from panda_icefall.losses.smoothed import rnnt_loss_simple, rnnt_loss_smoothed

__all__ = [
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "mutual_information_recursion",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
]
