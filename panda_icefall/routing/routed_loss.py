"""From recorded logits to the selected loss: find the head, build the rows' program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.losses.heads import head_of
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.sites import RetainedSites
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.normalizer import RowLogits, TileCounters
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.routing.after_losses import recorded_loss
from panda_icefall.routing.graph import in_order, row_program
from panda_icefall.routing.heads import linear_head
from panda_icefall.routing.hosts import Kind
from panda_icefall.routing.joint_sites import RangesSites
from panda_icefall.routing.nodes import NODES, Node, Operand, Operation, Table
from panda_icefall.routing.observing import Observer, is_observed
from panda_icefall.routing.site_tensor import SiteTensor


def why_not(logits: SiteTensor) -> str | None:
    """The reason these recorded logits cannot be routed, or None."""
    if logits.is_materialised:
        return "logits used elsewhere"
    if not logits.is_plain:
        return "logits of another shape than that of the sites"
    if _are_given(logits):
        return "C classes at every site"
    return None


def row_logits(
    logits: SiteTensor, *, is_shift_free: bool, position: Tensor | None = None
) -> RowLogits:
    """What computes recorded logits.

    Args:
      is_shift_free: whether the loss and its gradient stay the same when all logits of a site are
        shifted. A ``log_softmax`` changes nothing then but the normaliser, which observers see.
      position: int64 ``[N]``, the sites that are wanted; None: all.

    Raises:
      PandaError: a tensor was changed in place since it was recorded, or its memory is gone.
    """
    in_order(logits.node)  # the head too, which is no part of the rows
    grad_mode = torch.set_grad_enabled(torch.is_grad_enabled() and logits.grad_enabled)
    with grad_mode, no_autocast(logits.device):
        head = linear_head(logits.node, is_shift_free=is_shift_free and not is_observed())
        rows = row_program(logits.node if head is None else head.input, logits.sites, position)
        if head is None:
            return RowLogits(rows)
        return RowLogits(rows, head.weight, head.bias, head.cast)


def compute(
    logits: SiteTensor,
    arguments: Mapping[str, Any],
    options: LossOptions,
    *,
    counters: TileCounters,
    observer: Observer | None = None,
) -> Tensor:
    """The loss ``k2.rnnt_loss_pruned`` would return for the recorded logits.

    Args:
      logits: recorded; ``why_not`` gave None.
      arguments: those of k2.rnnt_loss_pruned by name.
      options: how tiles are cut and computed.
      counters: totals to add to.
      observer: as in ``selected_transducer_loss``.
    """
    ranges = arguments["ranges"]
    if isinstance(ranges, Tensor) and tuple(ranges.shape) != logits.sites.shape:
        raise ValueError(
            f"ranges: got shape {tuple(ranges.shape)}, expected {logits.sites.shape} "
            f"(those given to do_rnnt_pruning)"
        )
    symbols = arguments["symbols"]
    # k2 1.23.4 does not have it.
    use_hat_loss = bool(arguments.get("use_hat_loss", False))
    _check_lm_rows(logits.node, symbols)
    sites = RetainedSites.of(LatticeSpec.of(arguments), logits.width)
    # A joiner that was run without gradients has none, wherever the loss is computed.
    with torch.set_grad_enabled(torch.is_grad_enabled() and logits.grad_enabled):
        loss = recorded_loss(
            Kind.PRUNED_LOSS.value,
            logits,
            lambda: row_logits(logits, is_shift_free=not use_hat_loss),
            sites,
            head_of(use_hat_loss),
            options,
            counters=counters,
            observer=observer,
            has_unknown_rows=not _is_of_ranges(logits, ranges),
        )
    # Losses of half logits stay in float32, where their sums were made.
    return loss.to(logits.dtype) if logits.dtype in (torch.float32, torch.float64) else loss


def _is_of_ranges(logits: SiteTensor, ranges: Tensor) -> bool:
    """Whether the joint reads lm at the very ranges of the loss, which are checked."""
    return isinstance(logits.sites, RangesSites) and logits.sites.ranges is ranges


def _are_given(logits: SiteTensor) -> bool:
    """Whether recorded logits are made of a tensor of logits that exists."""
    reached: list[Node] = [logits.node]
    seen: set[int] = set()
    while reached:
        node = reached.pop()
        if isinstance(node, Operand) and node.is_at_each(logits.sites):
            if node.width == logits.width and node.dtype.is_floating_point:
                return True
        elif isinstance(node, Operation) and id(node) not in seen:
            seen.add(id(node))
            reached += [n for n in (*node.args, *node.kwargs.values()) if isinstance(n, NODES)]
    return False


def _check_lm_rows(head: Node, symbols: Tensor) -> None:
    """Refuse an ``lm`` with fewer states than the symbols need."""
    for node in in_order(head, is_read=False):
        if isinstance(node, Table) and node.by_symbol and node.values.shape[1] <= symbols.shape[-1]:
            raise ValueError(
                f"lm: got {node.values.shape[1]} states for symbols of shape "
                f"{tuple(symbols.shape)}, expected S + 1 = {symbols.shape[-1] + 1} or more"
            )
