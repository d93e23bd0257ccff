"""From recorded logits to the selected loss: find the head, build the rows' program."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.losses.pruned import selected_rnnt_loss_pruned
from panda_icefall.normalizer import TileCounters
from panda_icefall.routing.graph import SiteTensor, row_program
from panda_icefall.routing.nodes import Linear, Node, Operation, Table, in_order
from panda_icefall.routing.observing import Observer


def why_not(logits: SiteTensor) -> str | None:
    """The reason these recorded logits cannot be routed, or None."""
    if logits.is_materialised:
        return "logits used elsewhere"
    head = _head(logits.node)
    if not isinstance(head, Linear):
        if isinstance(head, Operation):
            return f"{getattr(head.function, '__name__', '?')} after the last linear"
        return "no linear after am and lm were combined"
    if logits.dtype == torch.float64 and head.dtype != torch.float64:
        return "double() after the last linear"
    return None


def compute(
    logits: SiteTensor,
    arguments: Mapping[str, Any],
    *,
    workspace_bytes: int | None,
    adjoint_tolerance: float | None,
    engine: str,
    counters: TileCounters,
    observer: Observer | None = None,
) -> Tensor:
    """The loss ``k2.rnnt_loss_pruned`` would return for the recorded logits.

    Args:
      logits: recorded; ``why_not`` gave None.
      arguments: those of k2.rnnt_loss_pruned by name.
      workspace_bytes, adjoint_tolerance, engine, counters: as in ``selected_log_probs``.
      observer: as in ``selected_rnnt_loss_pruned``.
    """
    head = _head(logits.node)
    assert isinstance(head, Linear)
    ranges = arguments["ranges"]
    if isinstance(ranges, Tensor) and ranges.shape != logits.sites.ranges.shape:
        raise ValueError(
            f"ranges: got shape {tuple(ranges.shape)}, expected {tuple(logits.sites.ranges.shape)} "
            f"(those given to do_rnnt_pruning)"
        )
    symbols = arguments["symbols"]
    _check_lm_rows(head, symbols)
    loss = selected_rnnt_loss_pruned(
        row_program(head.input, logits.sites),
        head.weight,
        head.bias,
        # As k2, which takes any integer tensor and whatever counts as an int.
        symbols=symbols.long() if symbols.dtype in (torch.int16, torch.int32) else symbols,
        ranges=ranges,
        termination_symbol=operator.index(arguments["termination_symbol"]),
        boundary=arguments["boundary"],
        rnnt_type=arguments["rnnt_type"],
        delay_penalty=arguments["delay_penalty"],
        reduction=arguments["reduction"],
        # k2 1.23.4 does not have it.
        use_hat_loss=bool(arguments.get("use_hat_loss", False)),
        observer=observer,
        head_dtype=head.cast,
        workspace_bytes=workspace_bytes,
        adjoint_tolerance=adjoint_tolerance,
        engine=engine,
        counters=counters,
    )
    # Losses of half logits stay in float32, where their sums were made.
    return loss.to(logits.dtype) if logits.dtype in (torch.float32, torch.float64) else loss


def _check_lm_rows(head: Node, symbols: Tensor) -> None:
    """Refuse an ``lm`` with fewer states than the symbols need."""
    for node in in_order(head):
        if isinstance(node, Table) and node.by_symbol and node.values.shape[1] <= symbols.shape[-1]:
            raise ValueError(
                f"lm: got {node.values.shape[1]} states for symbols of shape "
                f"{tuple(symbols.shape)}, expected S + 1 = {symbols.shape[-1] + 1} or more"
            )


def _head(node: Node) -> Node:
    """The node below the casts that icefall puts after the joiner (``logits.float()``)."""
    while isinstance(node, Operation) and node.function is Tensor.to:
        node = node.args[0]
    return node
