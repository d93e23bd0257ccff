"""The simple and the smoothed loss: a joiner that only adds, with LM-only and AM-only shares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.validation import widened
from panda_icefall.losses.lattice_checks import check_spec
from panda_icefall.losses.lattices.full import Loss, loss_of_arcs, symbol_arcs
from panda_icefall.losses.logit_checks import check_logits
from panda_icefall.losses.spec import LatticeSpec


class Scales(NamedTuple):
    """Shares of the smoothed loss; without them it is the simple loss.

    Attributes:
      lm_only: of the log-probs by ``lm`` alone.
      am_only: of those by ``am`` and the unigram that ``lm`` averages to over all its states.
    """

    lm_only: float = 0.0
    am_only: float = 0.0


@opaque
def rnnt_loss_simple(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
) -> Loss:
    """The transducer loss of the additive joiner, as ``k2.rnnt_loss_simple``.

    Equal to the full-lattice loss on the logits ``am[:, :, None] + lm[:, None]``, without the
    ``[B, T, S+1, C]`` tensor. Arguments, results and errors are those of ``rnnt_loss_smoothed``.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, boundary=boundary,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
    )  # fmt: skip
    return _loss(lm, am, spec, Scales(), return_grad)


@opaque
def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
) -> Loss:
    """The transducer loss of the additive joiner, smoothed, as ``k2.rnnt_loss_smoothed``.

    Each arc is ``(1 - lm_only_scale - am_only_scale) * combined + lm_only_scale * lm_only +
    am_only_scale * am_only``, where ``lm_only`` is the log-prob by ``lm`` alone and ``am_only`` the
    one by ``am`` and the unigram that ``lm`` averages to over all its states.

    Args:
      lm: ``[B, S+1, C]`` unnormalised log-probs of the predictor. Half ones are computed in float32
        from a copy, as are the loss and the occupations; their gradients are half.
      am: ``[B, T, C]`` unnormalised log-probs of the encoder, of the dtype of ``lm``.
      symbols, termination_symbol, boundary, rnnt_type, delay_penalty, reduction: as in
        ``panda_icefall.losses.spec.LatticeSpec``.
      lm_only_scale, am_only_scale: as in ``Scales``.
      return_grad: also return the occupations, for ``get_rnnt_prune_ranges``.

    Returns:
      The loss in nats, ``[B]`` for ``none``, else a scalar; with ``return_grad``
      ``(loss, (px_grad, py_grad))``, the gradients being those of the summed negated loss.

    Raises:
      ValueError: if a shape, an id, a boundary row or an option does not fit.
      TypeError: if a dtype does not fit.

    Runs with autocast off: the normalisers are matrix products of probabilities.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, boundary=boundary,
        rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction=reduction,
    )  # fmt: skip
    return _loss(lm, am, spec, Scales(lm_only_scale, am_only_scale), return_grad)


@opaque
def get_rnnt_logprobs(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    rnnt_type: str = "regular",
    boundary: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The arcs that ``rnnt_loss_simple`` sums over, as ``k2.get_rnnt_logprobs``.

    Arguments, results and errors are those of ``get_rnnt_logprobs_smoothed``.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, boundary=boundary,
        rnnt_type=rnnt_type,
    )  # fmt: skip
    return _arcs(lm, am, spec, Scales())


@opaque
def get_rnnt_logprobs_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
) -> tuple[Tensor, Tensor]:
    """The arcs that ``rnnt_loss_smoothed`` sums over, as ``k2.get_rnnt_logprobs_smoothed``.

    Args and errors are those of ``rnnt_loss_smoothed``.

    Returns:
      ``(px, py)`` in nats, for ``mutual_information_recursion``: symbol arcs ``[B, S, T+1]``
      (regular, -inf at frame ``t_end``) or ``[B, S, T]``, and blank arcs ``[B, S+1, T]``.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, boundary=boundary,
        rnnt_type=rnnt_type,
    )  # fmt: skip
    return _arcs(lm, am, spec, Scales(lm_only_scale, am_only_scale))


def _loss(lm: Tensor, am: Tensor, spec: LatticeSpec, scales: Scales, return_grad: bool) -> Loss:
    px, py = _arcs(lm, am, spec, scales)
    with torch.autocast(lm.device.type, enabled=False):
        return loss_of_arcs(px, py, spec, return_grad, is_checked=True)


def _arcs(lm: Tensor, am: Tensor, spec: LatticeSpec, scales: Scales) -> tuple[Tensor, Tensor]:
    check_logits(lm, am, spec.symbols, takes_half=True)
    check_spec(spec, lm.shape[2], am.shape[1])
    with torch.autocast(lm.device.type, enabled=False):
        px, py = smoothed_arcs(widened(lm), widened(am), spec, scales)
        return symbol_arcs(px, py, spec), py


def smoothed_arcs(
    lm: Tensor, am: Tensor, spec: LatticeSpec, scales: Scales
) -> tuple[Tensor, Tensor]:
    """Symbol arcs ``[B, S, T]`` and blank arcs ``[B, S+1, T]`` of the interpolated log-probs."""
    symbols, termination_symbol = spec.symbols, spec.termination_symbol
    B, S = symbols.shape
    T = am.shape[1]
    am_peak = am.max(dim=2, keepdim=True).values  # [B, T, 1]
    lm_peak = lm.max(dim=2, keepdim=True).values  # [B, S+1, 1]
    am_max, lm_max = am_peak.detach(), lm_peak.detach()
    am_probs = (am - am_max).exp()
    lm_probs = (lm - lm_max).exp()
    tiny = torch.finfo(am.dtype).tiny
    mass = torch.matmul(lm_probs, am_probs.transpose(1, 2))
    # Where all products are 0 nothing goes to them, rather than the 0 * inf of k2's gradient.
    log_z = (mass.masked_fill(mass == 0.0, 0.0) + tiny).log()
    # The maxima cancel but for k2's tiny, so only through this their gradient flows. It is what
    # keeps the gradient's sum 0 where am and lm disagree by so much that the products underflow.
    level = (lm_peak - lm_max) + (am_peak - am_max).transpose(1, 2)  # 0
    log_z = log_z + level * (tiny / (mass.detach() + tiny))
    log_z = log_z + lm_max + am_max.transpose(1, 2)  # [B, S+1, T]

    blank = symbols.new_full((B, 1), termination_symbol)
    # One gather for symbols and blank, as its gradient is a dense tensor of the size of am.
    am_ids = torch.cat((symbols, blank), dim=1).unsqueeze(2).expand(B, S + 1, T)
    am_arcs = am.transpose(1, 2).gather(1, am_ids)
    px_lm = lm[:, :S].gather(2, symbols.unsqueeze(2))  # [B, S, 1]
    py_lm = lm[:, :, termination_symbol].unsqueeze(2)  # [B, S+1, 1]
    lm_sums = lm_probs.sum(dim=2, keepdim=True)  # [B, S+1, 1]
    lm_log_z = lm_sums.log() + lm_max
    unigram = None
    if scales.am_only != 0.0:
        probs = (lm_probs / lm_sums).mean(dim=(0, 1)) + tiny  # [C]
        am_log_z = torch.matmul(am_probs, probs).log().unsqueeze(1) + am_max.transpose(1, 2)
        unigram_logp = probs.log()
        unigram = (
            unigram_logp[symbols].unsqueeze(2),
            unigram_logp[termination_symbol],
            am_log_z,
        )
    return mixed_arcs(scales, am_arcs, px_lm, py_lm, log_z, lm_log_z, unigram)


def mixed_arcs(
    scales: Scales,
    am: Tensor,
    px_lm: Tensor,
    py_lm: Tensor,
    log_z: Tensor,
    lm_log_z: Tensor,
    unigram: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The arcs of the smoothed loss, ``combined * (1 - lm_only - am_only) + ...``, in nats.

    A part of scale 0 is left out: k2 gives it the scale 1e-20, below every rounding.

    Args:
      am: ``[B, S+1, T]``, am at the symbols and, for the last s, at the blank.
      px_lm, py_lm: ``[B, S, 1]`` and ``[B, S+1, 1]``, lm at the symbols and at the blank.
      log_z: ``[B, S+1, T]``, the joint normaliser.
      lm_log_z: ``[B, S+1, 1]``, that of lm alone.
      unigram: its log-probs at the symbols ``[B, S, 1]`` and at the blank, which
        broadcasts to ``[B, 1, 1]``, and the
        normaliser ``[B, 1, T]`` of am and the unigram; None where ``am_only`` is 0.

    Returns:
      ``[B, S, T]`` and ``[B, S+1, T]``.
    """
    S = px_lm.shape[1]
    px_am, py_am = am.split((S, 1), dim=1)
    combined = 1.0 - scales.lm_only - scales.am_only
    px = (px_am + px_lm - log_z[:, :S]) * combined
    py = (py_am + py_lm - log_z) * combined
    if scales.lm_only != 0.0:
        px = px + (px_lm - lm_log_z[:, :S]) * scales.lm_only
        py = py + (py_lm - lm_log_z) * scales.lm_only
    if unigram is not None:
        px_unigram, py_unigram, am_log_z = unigram
        px = px + (px_am + px_unigram - am_log_z) * scales.am_only
        py = py + (py_am + py_unigram - am_log_z) * scales.am_only
    return px, py
