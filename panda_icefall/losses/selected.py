"""Transducer losses from a joiner's rows: a few log-probs per site, never the logits."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.losses.heads import Head, HeadLogProbs
from panda_icefall.losses.lattices.full import DEFAULT, loss_of_full_sites
from panda_icefall.losses.lattices.pruned import loss_of_retained_sites
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.sites import FullSites, LatticeSites, RetainedSites, SiteLogProbs
from panda_icefall.normalizer import RowLogits, TileCounters
from panda_icefall.normalizer.checks import check_rows
from panda_icefall.normalizer.op import select
from panda_icefall.normalizer.sharded import with_local_shard

# The loss of the sites' log-probs in nats, reduced as their lattice says.
LatticeLoss = Callable[[HeadLogProbs, LatticeSites], Tensor]


@opaque
def selected_transducer_loss(
    logits: RowLogits,
    sites: LatticeSites,
    head: Head,
    options: LossOptions,
    *,
    lattice_loss: LatticeLoss | None = None,
    clamp: float | None = None,
    counters: TileCounters | None = None,
    observer: Callable[[SiteLogProbs], None] | None = None,
    has_unknown_rows: bool = False,
) -> Tensor:
    """Transducer loss of a joiner whose last layer is linear, or none.

    Equal to ``k2.rnnt_loss_pruned`` of the logits of retained sites, and to ``k2.rnnt_loss`` and
    ``torchaudio.functional.rnnt_loss`` of those of a full lattice, without materialising the
    logits. Sites outside the utterances' boundary are not evaluated.

    Args:
      logits: ``[N, C]`` of the sites, as what computes them. A weight that is a DTensor sharded on
        its classes stays sharded; every rank of that group gives the same sites.
      sites: of a lattice that was checked for these classes.
      head: which log-probs of a site are read, see ``panda_icefall.losses.heads``.
      options: of the tiles, and which recursion runs; the engine is that of both.
      lattice_loss: of a lattice with arcs of its own; None: that of the transducer.
      clamp: as of ``panda_icefall.normalizer.op.select``.
      counters: totals to add to.
      observer: called with the log-probs, detached, before the loss is computed from them.
      has_unknown_rows: the tables of ``logits`` may be read at rows that they do not have; that
        takes a device sync to know.

    Returns:
      Negated total log-prob in nats: ``[B]`` for "none", else a scalar. float64 for float64 rows,
      float32 otherwise.

    Raises:
      ValueError, TypeError: an argument's shape, value or dtype, named in the message.

    Source:
      Graves, "Sequence transduction with recurrent neural networks" (arXiv:1211.3711);
      k2.rnnt_loss_pruned; Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training"
      (arXiv:2206.13236), section 3.
    """
    logits = with_local_shard(logits)  # a head reads ranges of its classes
    blank = sites.spec.termination_symbol
    head.check(blank, logits.classes)
    assert clamp is None or head.takes_clamp
    log_probs = functools.partial(
        select, live=sites.evaluated, options=options, counters=counters, clamp=clamp
    )
    if has_unknown_rows:
        check_rows(logits.rows)
    found = head.of_rows(logits, sites.next_symbols(), blank, log_probs)
    if observer is not None:
        observer(sites.observed(found.target, found.blank, found.log_z))
    return loss_of_log_probs(found, sites, lattice_loss, options)


def loss_of_log_probs(
    found: HeadLogProbs,
    sites: LatticeSites,
    lattice_loss: LatticeLoss | None = None,
    options: LossOptions = DEFAULT,
) -> Tensor:
    """The loss of what a head found at the sites; arguments as in ``selected_transducer_loss``."""
    if lattice_loss is not None:
        loss = lattice_loss(found, sites)
    elif isinstance(sites, RetainedSites):
        loss = loss_of_retained_sites(found.target, found.blank, sites, options)
    else:
        assert isinstance(sites, FullSites)
        loss = loss_of_full_sites(found.target, found.blank, sites, options)
    if found.cost_share is None or found.cost_share.numel() == 0:
        return loss
    return loss + sites.spec.reduced(sites.utterance_sums(found.cost_share)).to(loss.dtype)
