"""The contract check inside a session: on which batches it runs, and what the session learns."""

import functools
import inspect
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from rich.console import Console

from panda_icefall.runs.contract.check import Contract
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.errors import NotRoutedError
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_calls import Epoch, loss_of_model
from panda_icefall.runs.report.contract_table import print_contract, write_contract

__all__ = ["SessionCheck"]


class SessionCheck:
    """Runs the contract on a session's first training batches and reports it when it is complete.

    Does nothing where the options ask for no check.

    Args:
      options: What the user asked for.
      console: Where rank 0 prints the result.

    Attributes:
      path: The report, once it is written.
    """

    def __init__(self, options: PandaOptions, console: Console) -> None:
        self.path: Optional[Path] = None
        self._options = options
        self._console = console
        self._contract: Optional[Contract] = None

    @property
    def is_complete(self) -> bool:
        """Whether a check was asked for and has seen all its batches, or cannot go on."""
        return self._contract is not None and self._contract.is_complete

    @property
    def violations(self) -> tuple[str, ...]:
        """What the check has against the run so far, a check that was cut short included."""
        if not self._options.check_batches:
            return ()
        if self._contract is None or not self._contract.is_complete:
            done = 0 if self._contract is None else self._contract.batches_seen
            needed = self._options.batches_of_check
            return (
                f"the contract check saw {done} of {needed} training batches before the run ended",
            )
        return tuple(self._contract.result.violations)

    def prepare(self, device: torch.device) -> None:
        """Called before each epoch of training on ``device``; the first one starts the check."""
        if self._options.check_batches and self._contract is None:
            self._contract = Contract(self._options, device)

    def observe(
        self,
        compute_loss: Callable[..., Any],
        bound: inspect.BoundArguments,
        epoch: Epoch,
        ledger: CounterLedger,
        rank: int,
    ) -> None:
        """Check one batch while there are batches left to check, before the recipe trains on it.

        Args:
          compute_loss: The recipe's own function.
          bound: The arguments it is about to be called with.
          epoch: The epoch of the batch.
          ledger: Does not book what the check counts.
          rank: The process's rank.
        """
        contract = self._contract
        if contract is None or contract.is_complete:
            return
        ledger.advance()
        loss_of = functools.partial(loss_of_model, compute_loss, bound)
        contract.observe(
            loss_of, bound.arguments["model"], epoch.arguments["optimizer"], epoch.loss_scale
        )
        ledger.exclude()
        if contract.is_complete:
            self.path = write_contract(contract.result, epoch.folder, rank, epoch.device)
            if rank == 0:
                print_contract(contract.result, self.path, self._console)

    def verify_routed(self) -> None:
        """Called when a training batch is through.

        Raises:
          NotRoutedError: The check's routed arm ran without a routed loss.
        """
        if self._contract is not None and self._contract.result.not_routed is not None:
            raise NotRoutedError(self._contract.result.not_routed)
