"""What happens when a routed loss has been computed: followers are told, then it is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from panda_icefall.losses.heads import Head
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.selected import LatticeLoss, selected_transducer_loss
from panda_icefall.losses.sites import LatticeSites, SiteLogProbs
from panda_icefall.normalizer import RowLogits
from panda_icefall.routing.computed_losses import (
    AM,
    LM,
    LOGITS,
    OTHER,
    Computed,
    ComputedLoss,
    detached,
)
from panda_icefall.routing.graph import in_order
from panda_icefall.routing.nodes import Operand, Table
from panda_icefall.routing.non_finite import is_watched, look_at
from panda_icefall.routing.observing import Observer
from panda_icefall.routing.sharded_modules import in_forward_of
from panda_icefall.routing.site_tensor import SiteTensor

__all__ = ["followed_losses", "recorded_loss", "tell"]

Follower = Callable[[Computed], None]

_followers: list[Follower] = []
_wanting_log_probs: list[Follower] = []


@contextmanager
def followed_losses(follower: Follower, *, log_probs: bool = False) -> Iterator[None]:
    """Tell ``follower`` of every routed loss of the enclosed block, once it is computed.

    What it is told holds no graph and none but the graph's own memory. Blocks may be nested.

    Args:
      log_probs: whether it is told what the losses read at their sites, too.
    """
    lists = [_followers, _wanting_log_probs] if log_probs else [_followers]
    for followers in lists:
        followers.append(follower)
    try:
        yield
    finally:
        for followers in lists:
            followers.remove(follower)


def tell(found: Computed, result: Tensor) -> None:
    """Tell all followers, and look whether the loss is finite.

    Args:
      result: the loss as the caller gets it.
    """
    for follower in tuple(_followers):
        follower(found)
    look_at(found, result, is_reported=bool(_followers))


def recorded_loss(
    name: str,
    recorded: SiteTensor | None,
    logits: Callable[[], RowLogits],
    sites: LatticeSites,
    head: Head,
    options: LossOptions,
    *,
    lattice_loss: LatticeLoss | None = None,
    clamp: float | None = None,
    observer: Observer | None = None,
    **others: Any,
) -> Tensor:
    """``selected_transducer_loss``, of which followers are told.

    It runs in the forward of the modules that had gathered what was recorded, where FSDP2 shards
    them.

    Args:
      name: of the kind of loss.
      recorded: what the logits are computed from; None: the logits themselves are the table.
      logits: makes them; called once, where the recorded tensors are at hand.
      others: as of ``selected_transducer_loss``.
    """
    seen: list[SiteLogProbs] = []
    wants_log_probs = bool(_wanting_log_probs) or is_watched()

    def observe(log_probs: SiteLogProbs) -> None:
        seen.append(log_probs)
        if observer is not None:
            observer(log_probs)

    def computed() -> Tensor:
        rows = logits()
        loss = selected_transducer_loss(
            rows, sites, head, options, lattice_loss=lattice_loss, clamp=clamp,
            observer=observe if wants_log_probs else observer, **others,
        )  # fmt: skip
        found = ComputedLoss(
            name, loss.detach(), detached(rows), _tables(recorded, rows), sites, head, options,
            lattice_loss, clamp, seen[-1] if seen else None,
        )  # fmt: skip
        tell(found, loss)
        return loss

    return in_forward_of([] if recorded is None else recorded.tensors(), computed)


def _tables(recorded: SiteTensor | None, logits: RowLogits) -> tuple[str, ...]:
    """What the tables of a joiner's rows are, in their order."""
    if recorded is None:
        return (LOGITS,)
    order = in_order(recorded.node)
    names = [LM if node.by_symbol else AM for node in order if isinstance(node, Table)]
    names += [OTHER] * sum(isinstance(node, Operand) and not node.is_shared for node in order)
    count = len(logits.rows.tables)
    return tuple(names) if len(names) == count else (OTHER,) * count
