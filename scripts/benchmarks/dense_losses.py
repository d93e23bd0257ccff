"""The dense form of every transducer loss: logits of all classes, logsumexp, gather, the lattice.

The lattices and heads are the project's own, so that what differs is only how the log-probs are
had. Of the ways to write it this is the one with the fewest tensors of C classes: the logits, and
in backward their gradient beside what the two parts of it come from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from panda_icefall.losses.heads import HeadLogProbs
from panda_icefall.losses.lengths import sites_of_utterances
from panda_icefall.losses.selected import loss_of_log_probs
from panda_icefall.losses.sites import RetainedSites, next_symbols
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.losses.variant import Variant


def dense_loss(
    logits: Tensor,
    symbols: Tensor,
    frames: Tensor,
    states: Tensor,
    blank: int,
    *,
    rnnt_type: str = "regular",
    one_sym_per_frame: bool = False,
    fastemit_lambda: float = 0.0,
    **variant_options: Any,
) -> Tensor:
    """The loss of a full lattice's logits ``[B, T, S+1, C]``, summed, in nats.

    Arguments are those of `panda_icefall.transducer_loss`.
    """
    variant = Variant(**variant_options)
    B, T, S1, classes = logits.shape
    tokens = classes - variant.duration_classes
    sites = sites_of_utterances(
        symbols, frames, states,
        T=T, blank=blank, classes=tokens, forbidden=range(blank - variant.big_blanks, blank + 1),
        is_final_blank=one_sym_per_frame,
        rnnt_type="modified" if one_sym_per_frame else rnnt_type,
        reduction="sum", fastemit_lambda=fastemit_lambda,
    )  # fmt: skip
    head, lattice_loss = variant.chosen()
    end = symbols.new_full((B, 1), blank)
    targets = torch.cat((sites.spec.symbols, end), dim=1).unsqueeze(1).expand(B, T, S1)
    found = _rows(head.of_logits(logits, targets, blank), sites.position)
    return loss_of_log_probs(found, sites, lattice_loss)


def dense_pruned_loss(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    boundary: Tensor,
    blank: int,
    *,
    rnnt_type: str = "regular",
    fastemit_lambda: float = 0.0,
    **variant_options: Any,
) -> Tensor:
    """The loss of a pruned lattice's logits ``[B, T, s_range, C]``, summed, in nats.

    Arguments are those of `panda_icefall.pruned_transducer_loss`.
    """
    variant = Variant(**variant_options)
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=blank, ranges=ranges, boundary=boundary,
        rnnt_type=rnnt_type, reduction="sum", fastemit_lambda=fastemit_lambda,
    )  # fmt: skip
    sites = RetainedSites.of(spec, logits.shape[-1] - variant.duration_classes)
    head, lattice_loss = variant.chosen()
    found = _rows(head.of_logits(logits, next_symbols(symbols, ranges, blank), blank), None)
    return loss_of_log_probs(found, sites, lattice_loss)


def _rows(found: HeadLogProbs, position: Tensor | None) -> HeadLogProbs:
    """What a head found at ``[B, T, n]`` as rows, those of the positions or all."""

    def rows(values: Tensor) -> Tensor:
        flat = values.flatten(0, 2)
        return flat if position is None else flat.index_select(0, position)

    others = None if found.others is None else rows(found.others)
    return HeadLogProbs(rows(found.target), rows(found.blank), rows(found.log_z), others)
