"""``observed``: hands the log-probs that routed losses are made of to whoever asks for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from torch import Tensor

from panda_icefall.losses.sites import SiteLogProbs

__all__ = ["Observer", "current_observer", "observed"]

Observer = Callable[[SiteLogProbs], None]

_observers: list[Observer] = []
_watched: list[str] = []


@contextmanager
def observed(callback: Observer) -> Iterator[None]:
    """Call ``callback`` with the log-probs of every routed loss of the enclosed block.

    Args:
      callback: called once per routed loss, in order, with detached ``[B, T, s_range]`` tensors on
        the device of the loss, before the loss is returned. Losses computed from ordinary logits
        are not reported. Blocks may be nested: each callback is called.
    """
    _observers.append(callback)
    try:
        yield
    finally:
        # By identity, the innermost first: the same callback may be given twice.
        index = max(i for i, observer in enumerate(_observers) if observer is callback)
        del _observers[index]


def current_observer() -> Observer | None:
    """What a loss has to report to now; None, and so nothing to gather, when nobody observes."""
    return _report if _observers or _watched else None


def is_observed() -> bool:
    """Whether somebody is told the log-probs themselves, the normaliser among them."""
    return bool(_observers)


def watch_finite(module: str | None) -> None:
    """Log every routed loss whose log-probs are not finite, which costs a device sync each.

    Args:
      module: whose output, computed with the loss, is meant; None: no longer.
    """
    if module is None:
        _watched.clear()
    else:
        _watched.append(module)


def say_non_finite_simple_loss(loss: Tensor) -> None:
    """Log a simple loss that is not finite, while ``watch_finite`` asks for it."""
    if _watched and not loss.isfinite().all():
        logging.warning(
            "panda: a routed simple loss is not finite (hooks see no tensor of %s)",
            ", ".join(_watched),
        )


def _report(log_probs: SiteLogProbs) -> None:
    if _watched:
        _say_non_finite(log_probs)
    for observer in tuple(_observers):
        observer(log_probs)


def _say_non_finite(log_probs: SiteLogProbs) -> None:
    for name in ("log_z", "target", "blank"):
        bad = ~getattr(log_probs, name).isfinite() & log_probs.live
        if bad.any():
            logging.warning(
                "panda: %s of a routed loss is not finite at %d sites (computed from %s)",
                name,
                int(bad.sum()),
                ", ".join(_watched),
            )
            return
