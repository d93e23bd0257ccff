"""What a training session calls at its events: one protocol for every part of a run."""

import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from panda_icefall.routing import PandaError
from panda_icefall.runs.errors import NotRoutedError
from panda_icefall.runs.recipe_calls import Epoch, LossCall

__all__ = ["Hook", "call_each"]


class Hook:
    """One part of a training session; each method here does nothing.

    The session calls its hooks in one order. What a method raises ends the run, but
    :meth:`after_batch` and :meth:`close` of the other hooks are called all the same, and the epochs
    that were entered are left.
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
    """Make every call, also after one has raised; one error is raised at the end.

    That is the first signal or exit, else the first error. Further ones are logged, with their
    tracebacks where they are none of PANDA's own.
    """
    raised: list[BaseException] = []
    for call in calls:
        try:
            call()
        except BaseException as error:
            raised.append(error)
    if not raised:
        return
    first = next((error for error in raised if not isinstance(error, Exception)), raised[0])
    for further in raised:
        # Two hooks may find that nothing was routed.
        if further is first or (isinstance(first, NotRoutedError) and type(further) is type(first)):
            continue
        traceback = False if isinstance(further, PandaError) else further
        logging.error("panda: also %s: %s", type(further).__name__, further, exc_info=traceback)
    raise first
