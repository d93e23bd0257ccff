"""The one place that decides whether a routed loss is finite, looks for the cause, and logs it."""

from __future__ import annotations

import logging
import weakref

from torch import Tensor

from panda_icefall.routing.computed_losses import Computed, ComputedSimpleLoss
from panda_icefall.routing.diagnosis import Finding, bad_log_probs, diagnosed

__all__ = [
    "forget_non_finite",
    "forget_watched",
    "is_finite",
    "is_watched",
    "look_at",
    "non_finite_findings",
    "watch_for",
]

_watched: list[str] = []  # names of modules whose hooks see no tensor


class _First:
    """What is known of the first loss that was not finite."""

    def __init__(self) -> None:
        self.findings: tuple[Finding, ...] = ()
        # A loss that is still to be read, while its graph holds what it read.
        self._pending: weakref.ref[Computed] | None = None

    def keep(self, found: Computed, result: Tensor) -> None:
        """Let a loss be read later: no longer than until its backward, or its graph is gone."""
        held, pending = [found], weakref.ref(found)

        def forget(gradient: Tensor) -> None:
            held.clear()
            if self._pending is pending:  # else a later loss is kept
                self.drop()

        result.register_hook(forget)
        self._pending = pending

    def drop(self) -> None:
        """The loss that was kept is not read any more."""
        self._pending = None

    @property
    def pending(self) -> Computed | None:
        """The loss that was kept, if it is still there."""
        return None if self._pending is None else self._pending()


_first = _First()


def is_finite(found: Computed, *, log_probs: bool = False) -> bool:
    """Whether a loss is finite. Reads the device.

    Args:
      log_probs: whether the log-probs that were gathered with it have to be, too.
    """
    if not bool(found.loss.isfinite().all()):
        return False
    if not log_probs or isinstance(found, ComputedSimpleLoss) or found.log_probs is None:
        return True
    return not any(bool(bad.any()) for _, bad in bad_log_probs(found.log_probs))


def look_at(found: Computed, result: Tensor, *, is_reported: bool) -> None:
    """Look at a loss that was just computed; log the first that is not finite, with its cause.

    On a CPU that is done at once. Other devices would have to be waited for: the loss is read where
    ``status()`` is asked before its backward begins, and before another one is computed. Where
    modules are watched every loss is read at once, on all devices, and each bad one is logged.

    Args:
      result: the loss as the caller gets it.
      is_reported: whether a run's report describes it, which says more than the log.
    """
    _first.drop()
    if _watched or found.loss.device.type == "cpu":
        _read(found, is_reported)
    elif result.requires_grad and not _first.findings:
        _first.keep(found, result)


def non_finite_findings() -> tuple[Finding, ...]:
    """What was wrong with the first loss that was not finite, since ``forget_non_finite``."""
    pending = _first.pending
    if pending is not None and pending.is_whole:
        _read(pending, is_reported=False)
    return _first.findings


def forget_non_finite() -> None:
    """Begin again."""
    _first.findings = ()
    _first.drop()


def watch_for(name: str) -> None:
    """Stand in for the hooks of a module that see no tensor, until ``forget_watched``."""
    _watched.append(name)


def is_watched() -> bool:
    """Whether log-probs have to be gathered, because hooks would have seen them."""
    return bool(_watched)


def forget_watched() -> None:
    """Watch no module."""
    _watched.clear()


def _read(found: Computed, is_reported: bool) -> None:
    is_known = bool(_first.findings)
    if (is_known and not _watched) or is_finite(found, log_probs=bool(_watched)):
        return
    if not is_known:
        _first.findings = findings = tuple(diagnosed(found))
        if findings and not is_reported:
            more = f", and of {len(findings) - 1} more" if findings[1:] else ""
            logging.warning("panda: %s%s; said once", findings[0], more)
            return
    if _watched:
        names = ", ".join(_watched)
        logging.warning(
            "panda: a routed %s is not finite (hooks see no tensor of %s)", found.name, names
        )
