"""The pruned loss on plain logits: the dense twin that the selected path is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.validation import widened
from panda_icefall.losses.hat import check_hat, dense_hat_log_probs
from panda_icefall.losses.input_checks import check_floats, check_lattice_inputs
from panda_icefall.losses.lattice_terms import pruned_px_py, score
from panda_icefall.losses.sites import next_symbols


@opaque
def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    use_hat_loss: bool = False,
) -> Tensor:
    """The pruned transducer loss of `k2.rnnt_loss_pruned` by logsumexp and gather.

    float64 logits give a float64 loss: with them this is the oracle of the selected path. Half
    logits give a float32 loss, computed in float32 from a copy, and half gradients; k2's recursion
    refuses them.

    Args:
      logits: floats `[B, T, s_range, C]`.
      symbols: int64 `[B, S]`, ids in `[0, C)`, the padding included.
      ranges: int64 `[B, T, s_range]`, consecutive states in `[0, S]`.
      termination_symbol: the blank, in `[0, C)`.
      boundary: int64 `[B, 4]` rows `s_begin, t_begin, s_end, t_end`, or None for full length.
      rnnt_type: `regular`, `modified` or `constrained`.
      delay_penalty: nats per frame of delay, see `lattice_terms.score`.
      reduction: `none`, `mean` or `sum`.
      use_hat_loss: the blank is a Bernoulli variable beside a softmax over the other classes, see
        `panda_icefall.losses.hat`; the blank must be class 0.

    Returns:
      The loss in nats: `[B]` for `none`, else a scalar.

    Raises:
      ValueError: if a shape, an id, a range, a boundary row or an option does not fit.
      TypeError: if a dtype does not fit.
    """
    check_floats("logits", logits, "[B, T, s_range, C]", takes_half=True)
    C = logits.shape[3]
    check_lattice_inputs(
        symbols, ranges, termination_symbol, boundary, rnnt_type, reduction, num_classes=C
    )
    if logits.shape[:3] != ranges.shape:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)}, expected {[*ranges.shape, C]} "
            f"for ranges of shape {tuple(ranges.shape)}"
        )
    if use_hat_loss:
        check_hat(termination_symbol, C)
    targets = next_symbols(symbols, ranges, termination_symbol)
    target, blank, _ = dense_log_probs(widened(logits), targets, termination_symbol, use_hat_loss)
    px, py = pruned_px_py(target, blank, ranges, symbols.shape[1], boundary, rnnt_type)
    return score(px, py, boundary, rnnt_type, delay_penalty, reduction)


def dense_log_probs(
    logits: Tensor, targets: Tensor, termination_symbol: int, use_hat_loss: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What a pruned loss reads of logits that exist.

    Args:
      logits: `[..., C]`.
      targets: int64 `[...]` in `[0, C)`.
      termination_symbol: the blank, in `[0, C)`; 0 with `use_hat_loss`.
      use_hat_loss: see `panda_icefall.losses.hat`.

    Returns:
      `(target, blank, log_z)`, each `[...]` in nats.
    """
    if use_hat_loss:
        return dense_hat_log_probs(logits, targets)
    log_z = torch.logsumexp(logits, dim=-1)
    target = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_z
    return target, logits[..., termination_symbol] - log_z, log_z
