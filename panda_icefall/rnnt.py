"""The transducer losses of fast_rnnt and k2 under their names, in plain torch.

from panda_icefall import rnnt as fast_rnnt  # or: as k2
simple_loss, (px_grad, py_grad) = fast_rnnt.rnnt_loss_smoothed(..., return_grad=True)

Arguments have k2's names, order and defaults. What only one of the two has comes last:
``use_hat_loss`` of k2, ``return_grad`` of fast_rnnt 1.3; give those by name. ``fast_rnnt``'s first
versions had ``modified`` where there is ``rnnt_type`` now.

``panda_icefall.apply()`` replaces the same five here as in k2: ``do_rnnt_pruning`` and the pruned,
simple, smoothed and full-lattice loss.
"""

from panda_icefall.lattice import joint_mutual_information_recursion, mutual_information_recursion
from panda_icefall.losses.dense import (
    get_rnnt_logprobs_joint,
    get_rnnt_logprobs_pruned,
    rnnt_loss,
    rnnt_loss_pruned,
)
from panda_icefall.losses.pruning import do_rnnt_pruning, get_rnnt_prune_ranges
from panda_icefall.losses.smoothed import (
    get_rnnt_logprobs,
    get_rnnt_logprobs_smoothed,
    rnnt_loss_simple,
    rnnt_loss_smoothed,
)

__all__ = [
    "do_rnnt_pruning",
    "get_rnnt_logprobs",
    "get_rnnt_logprobs_joint",
    "get_rnnt_logprobs_pruned",
    "get_rnnt_logprobs_smoothed",
    "get_rnnt_prune_ranges",
    "joint_mutual_information_recursion",
    "mutual_information_recursion",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
]
