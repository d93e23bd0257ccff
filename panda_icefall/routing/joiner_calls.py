"""A joiner that cannot be recorded: called for some sites at a time, and again in backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from panda_icefall.lattice.validation import widened
from panda_icefall.losses.heads import Head, HeadLogProbs
from panda_icefall.losses.sites import LatticeSites
from panda_icefall.normalizer import TileOptions
from panda_icefall.routing.joint_sites import JointSites

Joiner = Callable[[Any, Any], Any]
# Logits in the loss: a float32 copy, exponentials, their gradient.
_COPIES = 3
# What a joiner makes is made again in backward, and has gradients.
_JOINER_COPIES = 2


@dataclass(frozen=True, eq=False)
class SiteRows:
    """What a joiner reads at its sites.

    Attributes:
      am: ``[B, T, D]``.
      lm: ``[B, S + 1, E]``.
      sites: that read them.
      ones: dimensions of size 1 that the joiner wants between the sites and D.
      position: int64 ``[N]``, those that are computed; None: all.
    """

    am: Tensor
    lm: Tensor
    sites: JointSites
    ones: int
    position: Tensor | None = None

    def classes_and_bytes(self, joiner: Joiner) -> tuple[int, int]:
        """How many logits the joiner gives for a site, and the bytes it makes; called for one."""
        with torch.no_grad(), _BytesMade() as made:
            first = [x.new_zeros(1, x.shape[-1]) for x in (self.am, self.lm)]
            return self._logits(joiner, *first).shape[1], made.bytes

    def at(self, position: Tensor | None) -> SiteRows:
        """Those of some of the sites."""
        return SiteRows(self.am, self.lm, self.sites, self.ones, position)

    def log_probs(self, joiner: Joiner, read: Callable[..., Any], rows_per_tile: int) -> list[Any]:
        """What ``read(logits [n, C], low, high)`` gives for each tile of sites.

        Each tile is a ``torch.utils.checkpoint.checkpoint``: its logits are made again in backward,
        with the random numbers of the forward.
        """
        am, lm = (x.reshape(-1, x.shape[-1]) for x in (self.am, self.lm))
        index = [self.sites.index(self.am, False), self.sites.index(self.lm, True)]
        if self.position is not None:
            index = [rows.index_select(0, self.position) for rows in index]

        def tile(am: Tensor, lm: Tensor, low: int, high: int) -> Any:
            rows = (x.index_select(0, at[low:high]) for x, at in zip((am, lm), index))
            return read(self._logits(joiner, *rows), low, high)

        total = index[0].shape[0]
        return [
            checkpoint(tile, am, lm, low, min(low + rows_per_tile, total), use_reentrant=False)
            for low in range(0, max(total, 1), rows_per_tile)
        ]

    def _logits(self, joiner: Joiner, am: Tensor, lm: Tensor) -> Tensor:
        """``[n, C]`` of rows ``[n, D]`` and ``[n, E]``.

        Raises:
          ValueError: the joiner does not give one row of logits for each site.
        """
        placed = [x[(slice(None),) + (None,) * self.ones] for x in (am, lm)]
        logits = joiner(*placed)
        is_tensor = isinstance(logits, Tensor) and logits.dim() > 0
        if not is_tensor or logits.numel() != am.shape[0] * logits.shape[-1]:
            got = tuple(logits.shape) if is_tensor else type(logits).__name__
            raise ValueError(
                f"joiner: got {got} for inputs of shape {tuple(placed[0].shape)} and "
                f"{tuple(placed[1].shape)}, expected logits of C classes for each site"
            )
        return logits.reshape(am.shape[0], logits.shape[-1])


def log_probs_by_calls(
    joiner: Joiner,
    rows: SiteRows,
    sites: LatticeSites,
    head: Head,
    classes: int,
    joiner_bytes: int,
    options: TileOptions,
    clamp: float | None,
) -> HeadLogProbs:
    """What ``head.of_rows`` gives, from logits ``[n, C]`` that the joiner makes, a tile at a time.

    Args:
      joiner: any function of am and lm, whatever tensors it reads besides. In training its dropout
        draws for each tile.
      rows: of the sites.
      classes, joiner_bytes: as of ``SiteRows.classes_and_bytes``.
      clamp: as of ``panda_icefall.normalizer.op.select``.
    """
    targets, blank = sites.next_symbols(), sites.spec.termination_symbol

    def read(logits: Tensor, low: int, high: int) -> tuple[Tensor, ...]:
        logits = widened(logits)
        share = logits.new_zeros(0)
        if clamp is not None:
            logits, share = _ClippedGradient.apply(logits, clamp, head.token_classes(classes))
        found = head.of_logits(logits, targets[low:high], blank)
        others = logits.new_zeros(high - low, 0) if found.others is None else found.others
        return found.target, found.blank, found.log_z, others, share

    is_double = rows.am.dtype == torch.float64
    in_loss = classes * (8 if is_double else 4) * _COPIES
    row_bytes = in_loss + joiner_bytes * _JOINER_COPIES
    tile_rows = max(1, options.workspace_on(rows.am.device) // row_bytes)
    parts = rows.log_probs(joiner, read, tile_rows)
    target, blank_logp, log_z, others, share = (torch.cat(values) for values in zip(*parts))
    return HeadLogProbs(target, blank_logp, log_z, others if others.shape[1] else None, share)


class _BytesMade(TorchDispatchMode):
    """Counts the bytes of the tensors that operations give, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and not value._is_view():
                self.bytes += value.numel() * value.element_size()
        return result


class _ClippedGradient(torch.autograd.Function):
    """Logits as they are, whose gradient is clipped as ``select`` does, and a cost share."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, clamp: float, tokens: int) -> tuple[Tensor, Tensor]:
        ctx.clamp, ctx.tokens = clamp, tokens
        return logits.view_as(logits), logits.new_zeros(logits.shape[0])

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, share_grad: Tensor
    ) -> tuple[Tensor, None, None]:
        bound = (ctx.clamp * share_grad.abs()).unsqueeze(1)
        tokens, others = grad[:, : ctx.tokens], grad[:, ctx.tokens :]
        clipped = torch.maximum(torch.minimum(tokens, bound), -bound)
        return torch.cat((clipped, others), dim=1), None, None
