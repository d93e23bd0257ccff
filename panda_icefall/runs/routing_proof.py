"""The proof that a run which asked for PANDA really trains with it."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from panda_icefall.runs.call_watch import LossCallWatch, explain_not_routed
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.errors import NotRoutedError

__all__ = ["RoutingProof"]


class RoutingProof:
    """Stops a run whose first training batch ended without a routed loss.

    Until the proof is given, the loss functions that the recipe calls are counted, for a message
    that names what was called instead; afterwards nothing is watched.

    Args:
      is_asked: Whether the run asked for PANDA; without that there is nothing to prove.
    """

    def __init__(self, is_asked: bool) -> None:
        self._is_due = is_asked
        self._calls: Counter[str] = Counter()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count the loss functions that the block, one training ``compute_loss``, calls."""
        if not self._is_due:
            yield
            return
        with LossCallWatch() as watch:
            yield
        self._calls += watch.calls

    def verify(self, ledger: CounterLedger) -> None:
        """Called when a training batch is through; the first call decides.

        Args:
          ledger: What routing counted for the recipe so far; brought up to date here.

        Raises:
          NotRoutedError: No loss was routed.
        """
        if not self._is_due:
            return
        ledger.advance()
        if ledger.total.losses_routed == 0:
            raise NotRoutedError(explain_not_routed(ledger.total, self._calls))
        self._is_due = False
