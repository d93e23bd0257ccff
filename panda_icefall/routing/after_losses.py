"""What happens when a routed loss has been computed: followers are told, and it is looked at."""

from __future__ import annotations

import logging
import weakref
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
from panda_icefall.routing.diagnosis import Finding, diagnosed
from panda_icefall.routing.graph import in_order
from panda_icefall.routing.nodes import Operand, Table
from panda_icefall.routing.observing import Observer
from panda_icefall.routing.sharded_modules import in_forward_of
from panda_icefall.routing.site_tensor import SiteTensor

__all__ = [
    "followed_losses",
    "forget_non_finite",
    "is_followed",
    "non_finite_findings",
    "recorded_loss",
    "tell",
]

Follower = Callable[[Computed], None]

_followers: list[Follower] = []
_wanting_log_probs: list[Follower] = []


class _NonFinite:
    """The first loss that was not finite, and one that is still to be looked at."""

    def __init__(self) -> None:
        self.findings: tuple[Finding, ...] = ()
        self._pending: weakref.ref[Computed] | None = None

    def keep(self, found: Computed, result: Tensor) -> None:
        """Let a loss be looked at later: no longer than its graph holds what the loss read."""
        held = [found]

        def forget(gradient: Tensor) -> None:
            held.clear()
            self.drop()

        result.register_hook(forget)
        self._pending = weakref.ref(found)

    def drop(self) -> None:
        """The loss that was kept is not looked at any more."""
        self._pending = None

    def look_at_kept(self) -> None:
        """Look at the loss that was kept, if it is still there."""
        found = None if self._pending is None else self._pending()
        if found is not None and found.is_whole:
            self.look_at(found)

    def look_at(self, found: Computed) -> None:
        """Keep what is wrong with a loss, if it is the first with which something is."""
        if not self.findings and not bool(found.loss.isfinite().all()):
            self.findings = tuple(diagnosed(found))
            # A run's report says more.
            for finding in () if _followers else self.findings[:1]:
                more = f", and of {len(self.findings) - 1} more" if self.findings[1:] else ""
                logging.warning("panda: %s%s; said once", finding, more)


_non_finite = _NonFinite()


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


def is_followed() -> bool:
    return bool(_followers)


def tell(found: Computed, result: Tensor) -> None:
    """Tell all followers; and look at a loss that is not finite.

    On a CPU that is done at once. On other devices it would wait for them: the loss is looked at
    where ``status()`` is asked before its backward begins, and before another one is computed.

    Args:
      result: the loss as the caller gets it.
    """
    for follower in tuple(_followers):
        follower(found)
    _non_finite.drop()
    if found.loss.device.type == "cpu":
        _non_finite.look_at(found)
    elif result.requires_grad and not _non_finite.findings:
        _non_finite.keep(found, result)


def non_finite_findings() -> tuple[Finding, ...]:
    """What was wrong with the first loss that was not finite, since ``forget_non_finite``."""
    _non_finite.look_at_kept()
    return _non_finite.findings


def forget_non_finite() -> None:
    """Begin again."""
    _non_finite.findings = ()
    _non_finite.drop()


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
    wants_log_probs = bool(_wanting_log_probs)

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
