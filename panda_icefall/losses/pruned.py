"""The pruned RNN-T loss from a joiner's rows: two log-probs per site, never the logits."""

from __future__ import annotations

import functools
from typing import Callable

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.losses.hat import check_hat, selected_hat_log_probs
from panda_icefall.losses.lattice_terms import check_lattice_inputs, pruned_score
from panda_icefall.losses.sites import SiteLogProbs, inside_boundary, next_symbols
from panda_icefall.normalizer import (
    RowProgram,
    TileCounters,
    selected_log_probs,
)


@opaque
def selected_rnnt_loss_pruned(
    rows: Tensor | RowProgram,
    weight: Tensor | None,
    bias: Tensor | None,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    use_hat_loss: bool = False,
    *,
    observer: Callable[[SiteLogProbs], None] | None = None,
    head_dtype: torch.dtype | None = None,
    workspace_bytes: int | None = None,
    adjoint_tolerance: float | None = None,
    counters: TileCounters | None = None,
    engine: str = "auto",
) -> Tensor:
    """Pruned RNN-T loss of a joiner whose last layer is ``F.linear(rows, weight, bias)``, or none.

    Equal to ``k2.rnnt_loss_pruned(F.linear(rows, weight, bias).reshape(B, T, s_range, C), ...)``
    without materialising those logits. Sites outside the utterances' boundary are not evaluated.

    Args:
      rows: ``[B * T * s_range, H]`` hidden rows in (b, t, s) order, or their program.
      weight, bias, head_dtype, workspace_bytes, adjoint_tolerance, counters, engine: as in
        ``panda_icefall.normalizer.selected_log_probs``; the engine is that of the recursion too.
      symbols: ``[B, S]`` int64 in ``[0, C)``.
      ranges: ``[B, T, s_range]`` int64, consecutive symbol positions in ``[0, S]``, from
        ``k2.get_rnnt_prune_ranges``.
      termination_symbol: the blank, in ``[0, C)``.
      boundary: ``[B, 4]`` int64 rows ``(s_begin, t_begin, s_end, t_end)``; None: all of S and T.
      rnnt_type: "regular", "modified" or "constrained", as in k2.
      delay_penalty: as in k2; 0 for none.
      reduction: "none", "mean" or "sum" over the batch.
      use_hat_loss: the blank is a Bernoulli variable beside a softmax over the other classes, see
        ``panda_icefall.losses.hat``; the blank must be class 0.
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
    rows = RowProgram.of(rows)
    classes = rows.width if weight is None else weight.shape[0]
    check_lattice_inputs(
        symbols, ranges, termination_symbol, boundary, rnnt_type, reduction,
        num_classes=classes,
    )  # fmt: skip
    if use_hat_loss:
        check_hat(termination_symbol, classes)
    targets = next_symbols(symbols, ranges, termination_symbol).reshape(-1)  # [N]
    live = None if boundary is None else inside_boundary(ranges, boundary)
    log_probs = functools.partial(
        selected_log_probs,
        live=None if live is None else live.reshape(-1), head_dtype=head_dtype,
        workspace_bytes=workspace_bytes, adjoint_tolerance=adjoint_tolerance, counters=counters,
        engine=engine,
    )  # fmt: skip
    if use_hat_loss:
        target, blank, log_z = selected_hat_log_probs(log_probs, rows, weight, bias, targets)
    else:
        ids = torch.stack([targets, torch.full_like(targets, termination_symbol)], dim=1)
        selected_logp, log_z = log_probs(rows, weight, bias, ids)
        target, blank = selected_logp.unbind(dim=1)
    target, blank = target.reshape(ranges.shape), blank.reshape(ranges.shape)
    if observer is not None:
        live = inside_boundary(ranges, None) if live is None else live
        log_z = log_z.detach().reshape(ranges.shape)
        observer(SiteLogProbs(target.detach(), blank.detach(), log_z, live))
    return pruned_score(
        target,
        blank,
        ranges,
        symbols.shape[1],
        boundary,
        rnnt_type,
        delay_penalty,
        reduction,
        engine,
    )
