"""BASELINES: tiles of rows with all classes, under activation checkpointing and without.

Checkpointed: NeMo's scheme. The sites inside the boundary are packed, a tile of them goes through
joiner, log-sum-exp and gather under ``torch.utils.checkpoint``, and backward runs each tile again.
Plain: the same loop without checkpointing, chunked linear and logsumexp, where autograd keeps every
chunk's logits. Baselines: what is measured are the published algorithms, not the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.sites import SiteInputs
from panda_icefall.lattice.validation import widened

TILE_BYTES = 16 * 2**20


def checkpointed_row_log_probs(
    sites: SiteInputs, tile_bytes: int = TILE_BYTES
) -> tuple[Tensor, Tensor]:
    """Log-probs of the next symbol and of blank, row tile by row tile, recomputed in backward.

    Args:
      sites: N sites over C classes; those outside the boundary are not computed and get 0.
      tile_bytes: bytes of one tile's logits ``[n, C]``; a tile has one row at least.

    Returns:
      ``(target, blank)``, each ``[B, T, s_range]`` in nats.
    """
    return _row_log_probs(sites, tile_bytes, is_checkpointed=True)


def chunked_row_log_probs(sites: SiteInputs, tile_bytes: int = TILE_BYTES) -> tuple[Tensor, Tensor]:
    """The same without checkpointing; arguments and results as `checkpointed_row_log_probs`."""
    return _row_log_probs(sites, tile_bytes, is_checkpointed=False)


def _row_log_probs(
    sites: SiteInputs, tile_bytes: int, is_checkpointed: bool
) -> tuple[Tensor, Tensor]:
    def tile_log_probs(at: Tensor) -> Tensor:
        logits = widened(F.linear(sites.hidden(at), sites.weight, sites.bias))  # [n, C]
        return logits.gather(1, sites.ids[at]) - logits.logsumexp(dim=1, keepdim=True)

    tile_rows = max(1, tile_bytes // (sites.weight.shape[0] * sites.weight.element_size()))
    logp = torch.cat(
        [
            checkpoint(tile_log_probs, at, use_reentrant=False)
            if is_checkpointed
            else tile_log_probs(at)
            for at in sites.live.split(tile_rows)
        ]
    )  # [live, 2]
    selected_logp = logp.new_zeros(sites.ids.shape).index_copy(0, sites.live, logp)
    return sites.on_grid(selected_logp)
