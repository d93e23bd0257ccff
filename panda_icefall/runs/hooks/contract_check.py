"""The contract check as a hook: on which batches it runs, and what the run learns from it."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from panda_icefall.runs.contract.check import Contract
from panda_icefall.runs.errors import BoundReached, NotRoutedError
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_calls import Epoch, LossCall
from panda_icefall.runs.report.console import print_contract
from panda_icefall.runs.report.progress import times_text, waiting

__all__ = ["COMPARED", "ContractCheck"]

COMPARED = "contract check: compared batch"  # in the output, once for each; a parent counts them


class ContractCheck(Hook):
    """Runs the contract on the first training batches and reports it when it is complete.

    Args:
      options: What the user asked for.
      console: Where rank 0 prints the result.

    Attributes:
      path: The report, once it is written.
    """

    def __init__(self, options: PandaOptions, console: Console) -> None:
        self.path: Path | None = None
        self._options = options
        self._console = console
        self._contract: Contract | None = None
        self._seconds = 0.0

    @property
    def _progress(self) -> str:
        """For a terminal: which batch is compared, and about how long the rest takes."""
        done = 0 if self._contract is None else self._contract.batches_seen
        needed = self._options.batches_of_check
        times = f", {times_text(self._seconds, done, needed)}" if done else ""
        return f"contract check: batch {done + 1} of {needed}{times}"

    @property
    def violations(self) -> tuple[str, ...]:
        """What the check has against the run so far, a check that was cut short included."""
        if self._contract is None or not self._contract.is_complete:
            done = 0 if self._contract is None else self._contract.batches_seen
            needed = self._options.batches_of_check
            return (
                f"the contract check saw {done} of {needed} training batches before the run ended",
            )
        return tuple(self._contract.result.violations)

    @contextlib.contextmanager
    def epoch(self, epoch: Epoch) -> Iterator[None]:
        """The first epoch, which tells the device, starts the check."""
        if self._contract is None:
            self._contract = Contract(self._options, epoch.device)
        yield

    def before_batch(self, epoch: Epoch) -> None:
        """End the run where it was started for the check alone, which is complete.

        Raises:
          BoundReached: It is.
        """
        is_complete = self._contract is not None and self._contract.is_complete
        if is_complete and self._options.stop_after_check:
            raise BoundReached

    def before_loss(self, epoch: Epoch, call: LossCall) -> None:
        """Check one batch, while there are batches left to check, before the recipe trains on it.

        What the check counts is not booked.
        """
        contract = self._contract
        if contract is None or contract.is_complete or not call.is_training:
            return
        epoch.ledger.advance()
        model = call.bound.arguments["model"]
        began, before = time.monotonic(), contract.batches_seen
        with waiting(self._progress) if epoch.rank == 0 else contextlib.nullcontext():
            contract.observe(call.loss_of, model, epoch.arguments["optimizer"], epoch.loss_scale)
        self._seconds += time.monotonic() - began
        epoch.ledger.exclude()
        is_compared = contract.batches_seen > before and contract.not_routed is None
        if is_compared and epoch.rank == 0 and not self._console.is_terminal:
            done, needed = contract.batches_seen, self._options.batches_of_check
            times = times_text(self._seconds, done, needed)
            self._console.print(f"{COMPARED} {done} of {needed}, {times}", soft_wrap=True)
        if contract.is_complete:
            try:
                self.path = contract.result.write(epoch.folder, epoch.rank)
            except OSError as error:  # a full disk ends no training; what was found is printed
                logging.warning("panda: the contract report could not be written: %s", error)
            if epoch.rank == 0:
                print_contract(contract.result, self.path, self._console)

    def after_batch(self, epoch: Epoch) -> None:
        """End the run where the routed arm could not be what it is called.

        Raises:
          NotRoutedError: It ran without a routed loss.
        """
        if self._contract is not None and self._contract.not_routed is not None:
            raise NotRoutedError(self._contract.not_routed)

    def outcome(self) -> dict[str, Any]:
        """Where the report is, and what was violated."""
        return {
            "contract": None if self.path is None else str(self.path),
            "violations": self.violations,
        }
