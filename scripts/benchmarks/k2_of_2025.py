"""The dense losses as k2 of July 2025 computes them: what every figure is measured against.

k2 has no wheel for today's Python and torch, and the k2 1.23.4 that there is (2022) has a far
slower simple loss. So the operations on tensors of C classes are written here after k2's formulas,
one for one: the same products, exponentials, gathers and maxima, and so the same gradients of the
size of am, lm and the logits, whatever the scales. What works on `[B, S, T]` is the project's own,
as is the recursion where k2 is not installed. tests/scripts/test_k2_of_2025.py counts the tensors.

Regular lattices only, without delay penalty. Functions and arguments are called as in k2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from panda_icefall.losses import get_rnnt_prune_ranges, pruned_px_py, score
from panda_icefall.losses.lattices.full import Loss, symbol_arcs
from panda_icefall.losses.sites import next_symbols
from panda_icefall.losses.spec import LatticeOptions

__all__ = [
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "rnnt_loss_pruned",
    "rnnt_loss_smoothed",
]

# What k2 takes for a scale of 0: the part is computed all the same.
NO_SCALE = 1e-20


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    reduction: str = "mean",
    return_grad: bool = False,
) -> Loss:
    """The smoothed loss of `lm` `[B, S+1, C]` and `am` `[B, T, C]` in nats.

    Returns:
      The loss, or with `return_grad` `(loss, (px_grad, py_grad))`, see
      `panda_icefall.losses.smoothed.rnnt_loss_smoothed`.
    """
    B, S = symbols.shape
    T, C = am.shape[1:]
    tiny = torch.finfo(am.dtype).tiny
    # The maxima take part in the gradient, which costs another tensor of the size of each.
    am_max = am.max(dim=2, keepdim=True).values
    lm_max = lm.max(dim=2, keepdim=True).values
    am_exp, lm_exp = (am - am_max).exp(), (lm - lm_max).exp()
    log_z = (torch.matmul(lm_exp, am_exp.transpose(1, 2)) + tiny).log()
    log_z = log_z + lm_max + am_max.transpose(1, 2)  # [B, S+1, T]
    lm_mass = lm_exp.sum(dim=2, keepdim=True)
    unigram = (lm_exp / lm_mass).mean(dim=(0, 1), keepdim=True) + tiny  # [1, 1, C]
    unigram_mass = torch.mv(am_exp.reshape(-1, C), unigram.reshape(C)).reshape(B, T, 1)
    am_log_z = (unigram_mass.log() + am_max).transpose(1, 2)  # [B, 1, T]
    unigram = unigram.log()
    lm_log_z = lm_mass.log() + lm_max  # [B, S+1, 1]

    # Two reads of am and of lm, so two gradients of the size of each.
    px_am = am.transpose(1, 2).gather(1, symbols.unsqueeze(2).expand(B, S, T))
    px_lm = lm[:, :S].gather(2, symbols.unsqueeze(2))
    px_unigram = unigram.expand(B, S, C).gather(2, symbols.unsqueeze(2))
    py_am = am[:, :, termination_symbol].unsqueeze(1)
    py_lm = lm[:, :, termination_symbol].unsqueeze(2)
    py_unigram = unigram[0, 0, termination_symbol]

    scales = (
        1.0 - lm_only_scale - am_only_scale,
        lm_only_scale or NO_SCALE,
        am_only_scale or NO_SCALE,
    )
    px = _mixed(
        scales, px_am + px_lm - log_z[:, :S], px_lm - lm_log_z[:, :S], px_am + px_unigram - am_log_z
    )
    py = _mixed(scales, py_am + py_lm - log_z, py_lm - lm_log_z, py_am + py_unigram - am_log_z)
    px = symbol_arcs(px, py, LatticeOptions(boundary))
    return score(px, py, boundary, "regular", 0.0, reduction, return_grad)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """am `[B, T, H]` as a view and the gathered lm, both `[B, T, s_range, H]`."""
    B, T, s_range = ranges.shape
    H = lm.shape[2]
    index = ranges.reshape(B, T * s_range, 1).expand(B, T * s_range, H)
    lm_pruned = lm.gather(1, index).reshape(B, T, s_range, H)
    return am.unsqueeze(2).expand(B, T, s_range, am.shape[2]), lm_pruned


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    reduction: str = "mean",
) -> Loss:
    """The pruned loss of logits `[B, T, s_range, C]` in nats."""
    log_z = logits.logsumexp(dim=3)
    targets = next_symbols(symbols, ranges, termination_symbol).unsqueeze(3)
    target = logits.gather(3, targets).squeeze(3) - log_z
    # Sliced in this way, as k2 does: torch 1.13 makes a gradient of the whole for each colon.
    blank = logits[:, :, :, termination_symbol].clone() - log_z
    px, py = pruned_px_py(target, blank, ranges, symbols.shape[1], boundary, "regular")
    return score(px, py, boundary, "regular", 0.0, reduction)


def _mixed(
    scales: tuple[float, float, float], joint: Tensor, lm_only: Tensor, am_only: Tensor
) -> Tensor:
    """The three parts of an arc's log-prob by their scales."""
    return joint * scales[0] + lm_only * scales[1] + am_only * scales[2]
