"""The pruned loss on plain logits: the dense twin that the selected path is measured against."""

from __future__ import annotations

from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.validation import widened
from panda_icefall.losses.heads import HeadLogProbs, head_of
from panda_icefall.losses.lattices.full import loss_of_arcs
from panda_icefall.losses.lattices.pruned import pruned_px_py
from panda_icefall.losses.logit_checks import check_floats
from panda_icefall.losses.sites import next_symbols
from panda_icefall.losses.spec import LatticeSpec, check_spec


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
    """The pruned transducer loss of ``k2.rnnt_loss_pruned`` by logsumexp and gather.

    float64 logits give a float64 loss: with them this is the oracle of the selected path. Half
    logits give a float32 loss, computed in float32 from a copy, and half gradients; k2's recursion
    refuses them.

    Args:
      logits: floats ``[B, T, s_range, C]``.
      symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, reduction: as in
        ``panda_icefall.losses.spec.LatticeSpec``.
      use_hat_loss: the blank is a Bernoulli variable beside a softmax over the other classes, see
        ``panda_icefall.losses.heads.hat``; the blank must be class 0.

    Returns:
      The loss in nats: ``[B]`` for ``none``, else a scalar.

    Raises:
      ValueError: if a shape, an id, a range, a boundary row or an option does not fit.
      TypeError: if a dtype does not fit.
    """
    check_floats("logits", logits, "[B, T, s_range, C]", takes_half=True)
    C = logits.shape[3]
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, ranges=ranges, boundary=boundary,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
    )  # fmt: skip
    check_spec(spec, C)
    if logits.shape[:3] != ranges.shape:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)}, expected {[*ranges.shape, C]} "
            f"for ranges of shape {tuple(ranges.shape)}"
        )
    head_of(use_hat_loss).check(termination_symbol, C)
    targets = next_symbols(symbols, ranges, termination_symbol)
    found = dense_log_probs(widened(logits), targets, termination_symbol, use_hat_loss)
    px, py = pruned_px_py(found.target, found.blank, ranges, symbols.shape[1], boundary, rnnt_type)
    return loss_of_arcs(px, py, spec, is_checked=True)


def dense_log_probs(
    logits: Tensor, targets: Tensor, termination_symbol: int, use_hat_loss: bool
) -> HeadLogProbs:
    """What a pruned loss reads of logits ``[..., C]`` that exist, at targets ``[...]``."""
    return head_of(use_hat_loss).of_logits(logits, targets, termination_symbol)
