"""The pruned RNN-T loss from a joiner's rows: two log-probs per site, never the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.losses.lattice_terms import check_lattice_inputs, pruned_px_py, score
from panda_icefall.normalizer import (
    DEFAULT_WORKSPACE_BYTES,
    RowProgram,
    TileCounters,
    selected_log_probs,
)


def selected_rnnt_loss_pruned(
    rows: Tensor | RowProgram,
    weight: Tensor,
    bias: Tensor | None,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    *,
    head_dtype: torch.dtype | None = None,
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES,
    adjoint_tolerance: float | None = None,
    counters: TileCounters | None = None,
) -> Tensor:
    """Pruned RNN-T loss of a joiner whose last layer is ``F.linear(rows, weight, bias)``.

    Equal to ``k2.rnnt_loss_pruned(F.linear(rows, weight, bias).reshape(B, T, s_range, C), ...)``
    without materialising those logits. Sites outside the utterances' boundary are not evaluated.

    Args:
      rows: ``[B * T * s_range, H]`` hidden rows in (b, t, s) order, or their program.
      weight, bias, head_dtype, workspace_bytes, adjoint_tolerance, counters: as in
        ``panda_icefall.normalizer.selected_log_probs``.
      symbols: ``[B, S]`` int64 in ``[0, C)``.
      ranges: ``[B, T, s_range]`` int64, consecutive symbol positions in ``[0, S]``, from
        ``k2.get_rnnt_prune_ranges``.
      termination_symbol: the blank, in ``[0, C)``.
      boundary: ``[B, 4]`` int64 rows ``(s_begin, t_begin, s_end, t_end)``; None: all of S and T.
      rnnt_type: "regular", "modified" or "constrained", as in k2.
      delay_penalty: as in k2; 0 for none.
      reduction: "none", "mean" or "sum" over the batch.

    Returns:
      Negated total log-prob in nats: ``[B]`` for "none", else a scalar. float64 for float64 rows,
      float32 otherwise.

    Raises:
      ValueError, TypeError: an argument's shape, value or dtype, named in the message.

    Source:
      k2.rnnt_loss_pruned; Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training",
      section 3.
    """
    check_lattice_inputs(
        symbols, ranges, termination_symbol, boundary, rnnt_type, reduction,
        num_classes=weight.shape[0],
    )  # fmt: skip
    B, T, s_range = ranges.shape
    S = symbols.shape[1]
    blank = torch.full((B, 1), termination_symbol, dtype=torch.int64, device=symbols.device)
    targets = torch.cat([symbols, blank], dim=1)  # [B, S + 1]
    targets = targets.unsqueeze(1).expand(B, T, S + 1).gather(2, ranges)
    ids = torch.stack([targets, torch.full_like(targets, termination_symbol)], dim=-1)
    live = None if boundary is None else _inside_boundary(ranges, boundary).reshape(-1)
    selected_logp, _ = selected_log_probs(
        rows, weight, bias, ids.reshape(B * T * s_range, 2),
        live=live, head_dtype=head_dtype, workspace_bytes=workspace_bytes,
        adjoint_tolerance=adjoint_tolerance, counters=counters,
    )  # fmt: skip
    target_logp, blank_logp = selected_logp.reshape(B, T, s_range, 2).unbind(dim=-1)
    px, py = pruned_px_py(target_logp, blank_logp, ranges, S, boundary, rnnt_type)
    return score(px, py, boundary, rnnt_type, delay_penalty, reduction)


def _inside_boundary(ranges: Tensor, boundary: Tensor) -> Tensor:
    """``[B, T, s_range]`` bool: sites whose log-probs the recursion can read."""
    s_begin, t_begin, s_end, t_end = boundary[:, :, None, None].unbind(dim=1)  # each [B, 1, 1]
    t = torch.arange(ranges.shape[1], device=ranges.device)[None, :, None]
    return (t >= t_begin) & (t < t_end) & (ranges >= s_begin) & (ranges <= s_end)
