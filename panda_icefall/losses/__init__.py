"""Transducer losses from two log-probs per lattice site, with k2's names and signatures."""

from panda_icefall.losses.dense import rnnt_loss_pruned
from panda_icefall.losses.lattice_checks import check_lattice_inputs
from panda_icefall.losses.lattices.full import score
from panda_icefall.losses.lattices.pruned import pruned_px_py, pruned_score
from panda_icefall.losses.pruning import do_rnnt_pruning, get_rnnt_prune_ranges
from panda_icefall.losses.smoothed import rnnt_loss_simple, rnnt_loss_smoothed

__all__ = [
    "check_lattice_inputs",
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "pruned_px_py",
    "pruned_score",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
    "score",
]
