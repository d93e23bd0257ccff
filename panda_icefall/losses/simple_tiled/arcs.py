"""The arcs of the smoothed loss, mixed from the terms of its three parts."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import (
    USEFUL_ROWS,
    USEFUL_ROWS_ON_DEVICE,
    SimpleTilePlan,
)
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.losses.simple_tiled.terms import SimpleTerms, simple_terms
from panda_icefall.normalizer import TileCounters


def smoothed_arcs(
    am: LogitSource,
    lm: LogitSource,
    symbols: Tensor,
    termination_symbol: int,
    t_ends: Sequence[int],
    lm_only_scale: float,
    am_only_scale: float,
    *,
    workspace_bytes: int,
    counters: TileCounters | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the symbols and of the blank in the smoothed loss's full lattice.

    Equal to what `k2.get_rnnt_logprobs_smoothed` gives at the frames of each utterance, without
    another tensor of the size of am or lm.

    Args:
      am, lm: unnormalised log-probs `[B, T, C]` and `[B, S+1, C]`.
      symbols: int64 `[B, S]` in `[0, C)`.
      termination_symbol: the blank.
      t_ends: frames of each utterance, B numbers; what lies behind has finite values of no meaning.
      lm_only_scale: share of the LM-only part.
      am_only_scale: share of the AM-only part; a part of scale 0 is not computed.
      workspace_bytes: upper bound of a tile's scratch.
      counters: adds up tiles and seconds, or None.

    Returns:
      `[B, S, T]` and `[B, S+1, T]`, nats, in the dtype of arithmetic of am and lm.

    Raises:
      ValueError: the workspace cannot hold one utterance with a single class.
    """
    make_plan = functools.partial(
        SimpleTilePlan.make,
        states=lm.rows,
        classes=am.classes,
        widths=(am.width, lm.width),
        itemsize=torch.finfo(am.dtype).bits // 8,
        workspace_bytes=workspace_bytes,
        casts_weight=am.casts_weight or lm.casts_weight,
        useful_rows=USEFUL_ROWS if am.device.type == "cpu" else USEFUL_ROWS_ON_DEVICE,
    )
    plan = make_plan(t_ends)
    unigram_plan = make_plan([0] * len(t_ends)) if am_only_scale != 0.0 else None
    blank = symbols.new_full((len(symbols), 1), termination_symbol)
    ids = torch.cat((symbols, blank), dim=1)
    terms = simple_terms(am, lm, ids, plan, unigram_plan, counters)
    return _mixed(terms, lm_only_scale, am_only_scale)


def _mixed(terms: SimpleTerms, lm_only_scale: float, am_only_scale: float) -> tuple[Tensor, Tensor]:
    """Symbol arcs `[B, S, T]` and blank arcs `[B, S+1, T]`; the maxima cancel in each part."""
    S = terms.lm_log_mass.shape[1] - 1
    px_am, py_am = terms.am_selected.split((S, 1), dim=1)
    px_lm = terms.lm_selected.diagonal(dim1=1, dim2=2)[:, :S].unsqueeze(2)
    py_lm = terms.lm_selected[:, S].unsqueeze(2)
    combined_scale = 1.0 - lm_only_scale - am_only_scale
    px = (px_am + px_lm - terms.log_mass[:, :S]) * combined_scale
    py = (py_am + py_lm - terms.log_mass) * combined_scale
    if lm_only_scale != 0.0:
        lm_log_mass = terms.lm_log_mass.unsqueeze(2)
        px = px + (px_lm - lm_log_mass[:, :S]) * lm_only_scale
        py = py + (py_lm - lm_log_mass) * lm_only_scale
    if terms.unigram_logp is not None and terms.unigram_log_mass is not None:
        px_unigram, py_unigram = terms.unigram_logp.unsqueeze(2).split((S, 1), dim=1)
        unigram_log_mass = terms.unigram_log_mass.unsqueeze(1)
        px = px + (px_am + px_unigram - unigram_log_mass) * am_only_scale
        py = py + (py_am + py_unigram - unigram_log_mass) * am_only_scale
    return px, py
