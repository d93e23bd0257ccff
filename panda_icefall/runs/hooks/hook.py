"""What can be put around the training of a process: one protocol for every such part."""

import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from panda_icefall.routing import PandaError
from panda_icefall.runs.recipe_calls import Epoch, LossCall

__all__ = ["Hook", "call_each"]


class Hook:
    """One part that hangs on a training session; each method here does nothing.

    The session calls all its hooks in one order, at every event: none can keep an event from
    another. What a method raises ends the run, but :meth:`after_batch` and :meth:`close` of the
    other hooks are called all the same, and the epochs that were entered are left.
    """

    def epoch(self, epoch: Epoch) -> contextlib.AbstractContextManager[None]:
        """Around the recipe's ``train_one_epoch``; entered before its first batch is drawn."""
        return contextlib.nullcontext()

    def before_batch(self, epoch: Epoch) -> None:
        """Before each batch is drawn; ``BoundReached`` ends the run cleanly here."""

    def before_loss(self, epoch: Epoch, call: LossCall) -> None:
        """Before each ``compute_loss`` of the epoch, in training and in validation."""

    def around_loss(self, epoch: Epoch, compute: Callable[[], Any]) -> Any:
        """Around each ``compute_loss`` in training: calls ``compute`` once, returns its result."""
        return compute()

    def after_batch(self, epoch: Epoch) -> None:
        """When the recipe is done with a training batch, its checkpoint included."""

    def close(self, reason: str) -> None:
        """When the run is over, however it ended; ``reason`` says how, in a word."""

    def outcome(self) -> dict[str, Any]:
        """The hook's fields of the process's ``RunOutcome``; asked for after every batch."""
        return {}


def call_each(calls: Iterable[Callable[[], None]]) -> None:
    """Make every call, also after one has raised; the first error is raised at the end.

    Further errors are logged, with their tracebacks where they are none of PANDA's own.
    """
    first: BaseException | None = None
    for call in calls:
        try:
            call()
        except BaseException as error:
            if first is None:
                first = error
            else:
                is_own = isinstance(error, PandaError)
                logging.error(
                    "panda: also %s: %s", type(error).__name__, error, exc_info=not is_own
                )
    if first is not None:
        raise first
