"""A joiner that cannot be recorded: called for some sites at a time, and again in backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from panda_icefall.lattice.validation import widened
from panda_icefall.losses.heads import Head, HeadLogProbs
from panda_icefall.losses.sites import LatticeSites
from panda_icefall.normalizer import TileOptions
from panda_icefall.routing.joiner_probe import RowFacts, facts_of_a_row, why_not_by_calls
from panda_icefall.routing.joint_sites import JointSites, RangesSites
from panda_icefall.routing.recorded_joiners import not_recording
from panda_icefall.routing.torch_functions import name_of

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

    def facts(self, joiner: Joiner) -> RowFacts:
        """What the joiner gives, makes and reads for a site; it is called for one of zeros."""
        first = [x.new_zeros(1, x.shape[-1]) for x in (self.am, self.lm)]
        return facts_of_a_row(lambda: self._logits(joiner, *first))

    def why_not_by_calls(self, joiner: Joiner) -> str | None:
        """Why the joiner must be given all of its lattice at once, or None."""
        am, lm = self.am[:2, :2].detach(), self.lm[:2, :3].detach()
        b, t, s = *am.shape[:2], lm.shape[1]
        if 0 in (b, t, s):
            return None
        rows = [x.expand(b, t, s, -1).flatten(0, 2) for x in (am[:, :, None], lm[:, None])]

        def single() -> Tensor:
            parts = [x.split(1) for x in rows]
            return torch.cat([self._logits(joiner, *pair) for pair in zip(*parts)])

        with not_recording():
            return why_not_by_calls(joiner, self._placed(am, lm), single)

    def whole(self, joiner: Joiner) -> Tensor:
        """The logits of all sites, ``[*sites.shape, C]``.

        Raises:
          ValueError: the joiner gives another shape.
        """
        if isinstance(self.sites, RangesSites):
            given = [self.sites.at_sites(x, at) for x, at in ((self.am, False), (self.lm, True))]
        else:
            # A joiner may change what it is given.
            given = [*self._placed(self.am.clone(), self.lm.clone())]
        logits = _logits_of(joiner, given)
        if not isinstance(logits, Tensor) or tuple(logits.shape[:-1]) != self.sites.shape:
            form = ", ".join(map(str, self.sites.shape))
            raise _shape_error(joiner, given, logits, f"logits [{form}, C]")
        return logits

    def _placed(self, am: Tensor, lm: Tensor) -> tuple[Tensor, Tensor]:
        """``[b, t, D]`` and ``[b, s, E]`` as the joiner takes them."""
        if isinstance(self.sites, RangesSites):
            sizes = (*am.shape[:2], lm.shape[1], -1)
            return am.unsqueeze(2).expand(sizes), lm.unsqueeze(1).expand(sizes)
        return (am, lm) if self.ones == 1 else (am.unsqueeze(2), lm.unsqueeze(1))

    def at(self, position: Tensor | None) -> SiteRows:
        """Those of some of the sites."""
        return SiteRows(self.am, self.lm, self.sites, self.ones, position)

    def log_probs(
        self, joiner: Joiner, read: Callable[..., Any], facts: RowFacts, rows_per_tile: int
    ) -> list[Any]:
        """What ``read(logits [n, C], low, high)`` gives for each tile of sites.

        Each tile is a ``torch.utils.checkpoint.checkpoint``: its logits are made again in backward,
        with the random numbers of the forward.
        """
        am, lm = (x.reshape(-1, x.shape[-1]) for x in (self.am, self.lm))
        index = [self.sites.index(self.am, False), self.sites.index(self.lm, True)]
        if self.position is not None:
            index = [rows.index_select(0, self.position) for rows in index]

        def tile(am: Tensor, lm: Tensor, low: int, high: int) -> Any:
            facts.check_unchanged()
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
        logits = _logits_of(joiner, placed)
        is_tensor = isinstance(logits, Tensor) and logits.dim() > 0
        if not is_tensor or logits.numel() != am.shape[0] * logits.shape[-1]:
            raise _shape_error(joiner, placed, logits, "logits of C classes for each site")
        return logits.reshape(am.shape[0], logits.shape[-1])


def _logits_of(joiner: Joiner, given: Sequence[Tensor]) -> Any:
    """What the joiner makes of tensors; an error of its own says whose it is."""
    try:
        with not_recording():
            return joiner(*given)
    except Exception as error:
        if hasattr(error, "add_note"):  # Python 3.11
            shapes = " and ".join(str(tuple(x.shape)) for x in given)
            error.add_note(f"panda: raised by the joiner, {name_of(joiner)}, given {shapes}")
        raise


def _shape_error(joiner: Joiner, given: Sequence[Tensor], logits: Any, expected: str) -> ValueError:
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    shapes = " and ".join(str(tuple(x.shape)) for x in given)
    return ValueError(
        f"joiner: got {got} from {name_of(joiner)} for inputs of shape {shapes}, expected "
        f"{expected}"
    )


def log_probs_by_calls(
    joiner: Joiner,
    rows: SiteRows,
    sites: LatticeSites,
    head: Head,
    facts: RowFacts,
    options: TileOptions,
    clamp: float | None,
) -> HeadLogProbs:
    """What ``head.of_rows`` gives, from logits ``[n, C]`` that the joiner makes, a tile at a time.

    Args:
      joiner: any function of am and lm, whatever tensors it reads besides. In training its dropout
        draws for each tile.
      rows: of the sites.
      facts: of the joiner, ``SiteRows.facts``.
      clamp: as of ``panda_icefall.normalizer.op.select``.
    """
    targets, blank = sites.next_symbols(), sites.spec.termination_symbol

    def read(logits: Tensor, low: int, high: int) -> tuple[Tensor, ...]:
        logits = widened(logits)
        share = logits.new_zeros(0)
        if clamp is not None:
            logits, share = _ClippedGradient.apply(logits, clamp, head.token_classes(facts.classes))
        found = head.of_logits(logits, targets[low:high], blank)
        others = logits.new_zeros(high - low, 0) if found.others is None else found.others
        return found.target, found.blank, found.log_z, others, share

    is_double = rows.am.dtype == torch.float64
    in_loss = facts.classes * (8 if is_double else 4) * _COPIES
    row_bytes = in_loss + facts.bytes * _JOINER_COPIES
    tile_rows = max(1, options.workspace_on(rows.am.device) // row_bytes)
    parts = rows.log_probs(joiner, read, facts, tile_rows)
    target, blank_logp, log_z, others, share = (torch.cat(values) for values in zip(*parts))
    return HeadLogProbs(target, blank_logp, log_z, others if others.shape[1] else None, share)


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
