"""The simple and the smoothed loss: a joiner that only adds, with LM-only and AM-only shares."""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.validation import widened
from panda_icefall.losses.input_checks import check_lattice_inputs, check_logits
from panda_icefall.losses.lattice_terms import NEG_INF, Loss, close_symbol_arcs, score


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
    """The transducer loss of the additive joiner, as `k2.rnnt_loss_simple`.

    Equal to the full-lattice loss on the logits `am[:, :, None] + lm[:, None]`, without the
    `[B, T, S+1, C]` tensor. Arguments, results and errors are those of `rnnt_loss_smoothed`.
    """
    return rnnt_loss_smoothed(
        lm,
        am,
        symbols,
        termination_symbol,
        lm_only_scale=0.0,
        am_only_scale=0.0,
        boundary=boundary,
        rnnt_type=rnnt_type,
        delay_penalty=delay_penalty,
        reduction=reduction,
        return_grad=return_grad,
    )


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
    """The transducer loss of the additive joiner, smoothed, as `k2.rnnt_loss_smoothed`.

    Each arc is `(1 - lm_only_scale - am_only_scale) * combined + lm_only_scale * lm_only +
    am_only_scale * am_only`, where `lm_only` is the log-prob by `lm` alone and `am_only` the one
    by `am` and the unigram that `lm` averages to over all its states.

    Args:
      lm: `[B, S+1, C]` unnormalised log-probs of the predictor. Half ones are computed in float32
        from a copy, as are the loss and the occupations; their gradients are half.
      am: `[B, T, C]` unnormalised log-probs of the encoder, of the dtype of `lm`.
      symbols: int64 `[B, S]`, ids in `[0, C)`, the padding included.
      termination_symbol: the blank, in `[0, C)`.
      lm_only_scale: share of the LM-only part.
      am_only_scale: share of the AM-only part.
      boundary: int64 `[B, 4]` rows `s_begin, t_begin, s_end, t_end`, or None for full length.
      rnnt_type: `regular`, `modified` or `constrained`.
      delay_penalty: nats per frame of delay, see `lattice_terms.score`.
      reduction: `none`, `mean` or `sum`.
      return_grad: also return the occupations, for `get_rnnt_prune_ranges`.

    Returns:
      The loss in nats, `[B]` for `none`, else a scalar; with `return_grad`
      `(loss, (px_grad, py_grad))`, the gradients being those of the summed negated loss.

    Raises:
      ValueError: if a shape, an id, a boundary row or an option does not fit.
      TypeError: if a dtype does not fit.

    Runs with autocast off: the normalisers are matrix products of probabilities.
    """
    check_logits(lm, am, symbols, takes_half=True)
    check_lattice_inputs(
        symbols,
        None,
        termination_symbol,
        boundary,
        rnnt_type,
        reduction,
        num_classes=lm.shape[2],
        T=am.shape[1],
    )
    B, S1, _ = lm.shape
    with torch.autocast(lm.device.type, enabled=False):
        lm, am = widened(lm), widened(am)
        px, py = smoothed_arcs(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale)
        if rnnt_type == "regular":
            px = torch.cat((px, px.new_full((B, S1 - 1, 1), NEG_INF)), dim=2)
        px = close_symbol_arcs(px, py, boundary, rnnt_type)
        return score(px, py, boundary, rnnt_type, delay_penalty, reduction, return_grad)


def smoothed_arcs(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float,
    am_only_scale: float,
) -> tuple[Tensor, Tensor]:
    """Symbol arcs `[B, S, T]` and blank arcs `[B, S+1, T]` of the interpolated log-probs.

    A part of scale 0 is not computed: k2 gives it the scale 1e-20, below every rounding.
    """
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
    px_am, py_am = am.transpose(1, 2).gather(1, am_ids).split((S, 1), dim=1)
    px_lm = lm[:, :S].gather(2, symbols.unsqueeze(2))  # [B, S, 1]
    py_lm = lm[:, :, termination_symbol].unsqueeze(2)  # [B, S+1, 1]

    combined_scale = 1.0 - lm_only_scale - am_only_scale
    px = (px_am + px_lm - log_z[:, :S]) * combined_scale
    py = (py_am + py_lm - log_z) * combined_scale
    lm_sums = lm_probs.sum(dim=2, keepdim=True)  # [B, S+1, 1]
    if lm_only_scale != 0.0:
        lm_log_z = lm_sums.log() + lm_max
        px = px + (px_lm - lm_log_z[:, :S]) * lm_only_scale
        py = py + (py_lm - lm_log_z) * lm_only_scale
    if am_only_scale != 0.0:
        unigram = (lm_probs / lm_sums).mean(dim=(0, 1)) + tiny  # [C]
        am_log_z = torch.matmul(am_probs, unigram).log().unsqueeze(1) + am_max.transpose(1, 2)
        unigram_logp = unigram.log()
        px = px + (px_am + unigram_logp[symbols].unsqueeze(2) - am_log_z) * am_only_scale
        py = py + (py_am + unigram_logp[termination_symbol] - am_log_z) * am_only_scale
    return px, py
