"""The pruned loss on plain logits: the dense twin that the selected path is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.losses.input_checks import check_floats, check_lattice_inputs
from panda_icefall.losses.lattice_terms import pruned_px_py, score


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
) -> Tensor:
    """The pruned transducer loss of `k2.rnnt_loss_pruned` by logsumexp and gather.

    float64 logits give a float64 loss: with them this is the oracle of the selected path.

    Args:
      logits: float32 or float64 `[B, T, s_range, C]`.
      symbols: int64 `[B, S]`, ids in `[0, C)`, the padding included.
      ranges: int64 `[B, T, s_range]`, consecutive states in `[0, S]`.
      termination_symbol: the blank, in `[0, C)`.
      boundary: int64 `[B, 4]` rows `s_begin, t_begin, s_end, t_end`, or None for full length.
      rnnt_type: `regular`, `modified` or `constrained`.
      delay_penalty: nats per frame of delay, see `lattice_terms.score`.
      reduction: `none`, `mean` or `sum`.

    Returns:
      The loss in nats: `[B]` for `none`, else a scalar.

    Raises:
      ValueError: if a shape, an id, a range, a boundary row or an option does not fit.
      TypeError: if a dtype does not fit.
    """
    check_floats("logits", logits, "[B, T, s_range, C]")
    C = logits.shape[3]
    check_lattice_inputs(
        symbols, ranges, termination_symbol, boundary, rnnt_type, reduction, num_classes=C
    )
    if logits.shape[:3] != ranges.shape:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)}, expected {[*ranges.shape, C]} "
            f"for ranges of shape {tuple(ranges.shape)}"
        )
    B, S = symbols.shape
    log_z = torch.logsumexp(logits, dim=3)  # [B, T, s_range]
    # One entry more, for the sites at s == S where no symbol is left.
    targets = torch.cat((symbols, symbols.new_full((B, 1), termination_symbol)), dim=1)
    targets = targets.gather(1, ranges.reshape(B, -1)).reshape(ranges.shape)
    target_logp = logits.gather(3, targets.unsqueeze(3)).squeeze(3) - log_z
    blank_logp = logits[..., termination_symbol] - log_z
    px, py = pruned_px_py(target_logp, blank_logp, ranges, S, boundary, rnnt_type)
    return score(px, py, boundary, rnnt_type, delay_penalty, reduction)
