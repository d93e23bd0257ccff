"""``observed``: hands the log-probs that routed losses are made of to whoever asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

from panda_icefall.losses.sites import SiteLogProbs

__all__ = ["Observer", "current_observer", "observed"]

Observer = Callable[[SiteLogProbs], None]

_observers: list[Observer] = []


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
    return _report if _observers else None


def _report(log_probs: SiteLogProbs) -> None:
    for observer in tuple(_observers):
        observer(log_probs)
