"""The transducer losses on plain logits: what the selected path is measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.validation import widened
from panda_icefall.losses.heads import HeadLogProbs, head_of
from panda_icefall.losses.lattice_checks import check_spec
from panda_icefall.losses.lattices.full import Loss, loss_of_arcs, symbol_arcs
from panda_icefall.losses.lattices.pruned import pruned_px_py
from panda_icefall.losses.logit_checks import check_floats
from panda_icefall.losses.sites import next_symbols
from panda_icefall.losses.spec import LatticeSpec


@opaque
def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
    use_hat_loss: bool = False,
) -> Loss:
    """The transducer loss of the full lattice, as ``k2.rnnt_loss``, by logsumexp and gather.

    float64 logits give a float64 loss: with them this is an oracle. Half logits give a float32
    loss, computed in float32 from a copy, and half gradients; k2's recursion refuses them.

    Args:
      logits: floats ``[B, T, S+1, C]``.
      symbols, termination_symbol, boundary, rnnt_type, delay_penalty, reduction: as in
        ``panda_icefall.losses.spec.LatticeSpec``.
      return_grad: also return the occupations of the arcs, as fast_rnnt 1.3.
      use_hat_loss: the blank is a Bernoulli variable beside a softmax over the other classes, see
        ``panda_icefall.losses.heads.hat``; the blank must be class 0. k2 has it for the pruned
        loss only.

    Returns:
      The loss in nats: ``[B]`` for ``none``, else a scalar; with ``return_grad``
      ``(loss, (px_grad, py_grad))``, the gradients being those of the summed negated loss.

    Raises:
      ValueError: if a shape, an id, a boundary row or an option does not fit.
      TypeError: if a dtype does not fit.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, boundary=boundary,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
    )  # fmt: skip
    px, py = _full_arcs(logits, spec, use_hat_loss)
    return loss_of_arcs(px, py, spec, return_grad, is_checked=True)


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
    return_grad: bool = False,
) -> Loss:
    """The transducer loss of the retained sites, as ``k2.rnnt_loss_pruned``: as ``rnnt_loss``.

    Args:
      logits: floats ``[B, T, s_range, C]``.
      ranges: int64 ``[B, T, s_range]``, as in ``panda_icefall.losses.spec.LatticeSpec``.
      symbols, termination_symbol, boundary, rnnt_type, delay_penalty, reduction, use_hat_loss,
        return_grad: as in ``rnnt_loss``; the occupations are those of the full lattice's arcs.

    Returns:
      As ``rnnt_loss``.

    Raises:
      ValueError: if a shape, an id, a range, a boundary row or an option does not fit.
      TypeError: if a dtype does not fit.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, ranges=ranges, boundary=boundary,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
    )  # fmt: skip
    px, py = _pruned_arcs(logits, spec, use_hat_loss)
    return loss_of_arcs(px, py, spec, return_grad, is_checked=True)


@opaque
def get_rnnt_logprobs_joint(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    rnnt_type: str = "regular",
    boundary: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The arcs that ``rnnt_loss`` sums over, as ``k2.get_rnnt_logprobs_joint``.

    fast_rnnt has ``boundary`` before ``rnnt_type``: give them by name.

    Args and errors are those of ``rnnt_loss``.

    Returns:
      ``(px, py)`` in nats, for ``mutual_information_recursion``: symbol arcs ``[B, S, T+1]``
      (regular, -inf at frame ``t_end``) or ``[B, S, T]``, and blank arcs ``[B, S+1, T]``.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, boundary=boundary,
        rnnt_type=rnnt_type,
    )  # fmt: skip
    return _full_arcs(logits, spec, use_hat_loss=False)


@opaque
def get_rnnt_logprobs_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
) -> tuple[Tensor, Tensor]:
    """The arcs that ``rnnt_loss_pruned`` sums over, as ``k2.get_rnnt_logprobs_pruned``.

    Args and errors are those of ``rnnt_loss_pruned``, results those of ``get_rnnt_logprobs_joint``;
    -inf at states that are not retained.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, ranges=ranges, boundary=boundary,
        rnnt_type=rnnt_type,
    )  # fmt: skip
    return _pruned_arcs(logits, spec, use_hat_loss=False)


def _full_arcs(logits: Tensor, spec: LatticeSpec, use_hat_loss: bool) -> tuple[Tensor, Tensor]:
    check_floats("logits", logits, "[B, T, S+1, C]", takes_half=True)
    B, T, S1, C = logits.shape
    symbols, blank = spec.symbols, spec.termination_symbol
    check_spec(spec, C, T)
    if symbols.shape != (B, S1 - 1):
        raise ValueError(
            f"symbols: got shape {tuple(symbols.shape)}, expected [B, S] = [{B}, {S1 - 1}] for "
            f"logits of shape {tuple(logits.shape)}"
        )
    head_of(use_hat_loss).check(blank, C)
    targets = torch.cat((symbols, symbols.new_full((B, 1), blank)), dim=1)  # [B, S+1]
    found = dense_log_probs(
        widened(logits), targets.unsqueeze(1).expand(B, T, S1), blank, use_hat_loss
    )
    px, py = found.target[:, :, :-1].transpose(1, 2), found.blank.transpose(1, 2)
    return symbol_arcs(px, py, spec), py


def _pruned_arcs(logits: Tensor, spec: LatticeSpec, use_hat_loss: bool) -> tuple[Tensor, Tensor]:
    check_floats("logits", logits, "[B, T, s_range, C]", takes_half=True)
    C, ranges, blank = logits.shape[3], spec.band, spec.termination_symbol
    check_spec(spec, C)
    if logits.shape[:3] != ranges.shape:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)}, expected {[*ranges.shape, C]} "
            f"for ranges of shape {tuple(ranges.shape)}"
        )
    head_of(use_hat_loss).check(blank, C)
    targets = next_symbols(spec.symbols, ranges, blank)
    found = dense_log_probs(widened(logits), targets, blank, use_hat_loss)
    S = spec.symbols.shape[1]
    return pruned_px_py(found.target, found.blank, ranges, S, spec.boundary, spec.rnnt_type)


def dense_log_probs(
    logits: Tensor, targets: Tensor, termination_symbol: int, use_hat_loss: bool
) -> HeadLogProbs:
    """What a loss reads of logits ``[..., C]`` that exist, at targets ``[...]``."""
    return head_of(use_hat_loss).of_logits(logits, targets, termination_symbol)
