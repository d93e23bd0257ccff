"""The pruned RNN-T loss from a joiner's rows: two log-probs per site, never the logits."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.losses.heads import Head
from panda_icefall.losses.lattices.pruned import loss_of_sites
from panda_icefall.losses.sites import SiteLogProbs, inside_boundary, next_symbols
from panda_icefall.losses.spec import LatticeSpec, check_spec
from panda_icefall.normalizer import RowLogits, TileCounters, TileOptions
from panda_icefall.normalizer.op import select


@opaque
def selected_rnnt_loss_pruned(
    logits: RowLogits,
    spec: LatticeSpec,
    head: Head,
    options: TileOptions,
    *,
    counters: TileCounters | None = None,
    observer: Callable[[SiteLogProbs], None] | None = None,
) -> Tensor:
    """Pruned RNN-T loss of a joiner whose last layer is linear, or none.

    Equal to ``k2.rnnt_loss_pruned(logits.reshape(B, T, s_range, C), ...)`` without materialising
    the logits. Sites outside the utterances' boundary are not evaluated.

    Args:
      logits: ``[B * T * s_range, C]`` in (b, t, s) order, as what computes them.
      spec: of a pruned lattice; checked here.
      head: which log-probs of a site are read, see ``panda_icefall.losses.heads``.
      options: of the tiles; the engine is that of the recursion too.
      counters: totals to add to.
      observer: called with the log-probs, detached, before the loss is computed from them.

    Returns:
      Negated total log-prob in nats: ``[B]`` for "none", else a scalar. float64 for float64 rows,
      float32 otherwise.

    Raises:
      ValueError, TypeError: an argument's shape, value or dtype, named in the message.

    Source:
      k2.rnnt_loss_pruned; Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training",
      section 3.
    """
    check_spec(spec, logits.classes)
    head.check(spec.termination_symbol, logits.classes)
    ranges, boundary = spec.band, spec.boundary
    targets = next_symbols(spec.symbols, ranges, spec.termination_symbol).reshape(-1)  # [N]
    live = None if boundary is None else inside_boundary(ranges, boundary)
    found = head.of_rows(
        logits,
        targets,
        spec.termination_symbol,
        functools.partial(
            select,
            live=None if live is None else live.reshape(-1),
            options=options,
            counters=counters,
        ),
    ).reshape(*ranges.shape)
    if observer is not None:
        live = inside_boundary(ranges, None) if live is None else live
        target, blank, log_z = (values.detach() for values in found)
        observer(SiteLogProbs(target, blank, log_z, live))
    return loss_of_sites(found.target, found.blank, spec, options.engine)
