"""Wrappers around a recipe's ``compute_loss`` and ``train_one_epoch`` in one process."""

import contextlib
import inspect
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional

import torch

from panda_icefall import routing
from panda_icefall.routing import PandaError
from panda_icefall.runs.batches import BatchFeed, FirstBatchOnly
from panda_icefall.runs.contract.session_check import SessionCheck
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.errors import BoundReached, UsageError, exit_status
from panda_icefall.runs.last_bit import change_last_bit
from panda_icefall.runs.memory.probe import process_peak_bytes
from panda_icefall.runs.memory.session_log import SessionLog
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_calls import (
    Epoch,
    WrappedFunction,
    call_recorded,
    wrap_function,
)
from panda_icefall.runs.records import RunOutcome
from panda_icefall.runs.repeatable import RepeatableBatches
from panda_icefall.runs.report.summary import open_console
from panda_icefall.runs.routing_proof import RoutingProof
from panda_icefall.runs.termination import Terminated

__all__ = ["TrainingSession"]


class TrainingSession:
    """Everything that is put around the training of one process.

    Args:
      options: What the user asked for.
      rank: The process's rank, until ``train_one_epoch`` is called with one.
      outcome_folder: Where the outcome so far is left after every batch, for a parent process
        that may outlive this one; None: nowhere.
    """

    def __init__(
        self, options: PandaOptions, rank: int = 0, outcome_folder: Optional[Path] = None
    ) -> None:
        self.options = options
        self._outcome_folder = outcome_folder
        self.rank = rank
        self.console = open_console()
        self._started = time.perf_counter()
        self._ledger: Optional[CounterLedger] = None
        self._log = SessionLog(options)
        self._check = SessionCheck(options, self.console)
        self._proof = RoutingProof(options.use_panda, options.workspace_mib, options.projections)
        self._device = torch.device("cpu")
        self._wrapped: list[WrappedFunction] = []
        self._epoch: Optional[Epoch] = None
        self._batches = 0
        self._steps = 0
        self._steps_settled = 0
        self._is_bounded = False
        self._is_twin = False
        self._has_said_options = False
        self._repeatable: Optional[RepeatableBatches] = None
        self._error: Optional[tuple[str, str]] = None

    def install(self, namespace: dict[str, Any], where: str) -> None:
        """Put the wrappers into the globals of a recipe.

        Args:
          namespace: The globals in which the recipe's functions look each other up.
          where: The recipe's path, for errors.

        Raises:
          UsageError: A function or one of its parameters is missing.
        """
        needed = ["model", "train_dl"] + ["optimizer"] * bool(self.options.check_batches)
        train = wrap_function(namespace, "train_one_epoch", self._train_one_epoch, needed, where)
        self._wrapped.append(train)
        # A recipe may import its training loop; compute_loss is then looked up where that lives.
        home = getattr(train.original, "__globals__", namespace)
        self._wrapped.append(
            wrap_function(home, "compute_loss", self._compute_loss, ("model", "batch"), where)
        )

    def uninstall(self) -> None:
        """Put back what :meth:`install` replaced, also where it failed half-way."""
        while self._wrapped:
            self._wrapped.pop().put_back()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Routing in place, if asked for, while the recipe runs; a reached bound ends it quietly.

        Raises:
          NotRoutedError: No loss was routed in the first training batch.
        """
        o = self.options
        routed = (
            routing.patched(
                workspace_mib=o.workspace_mib,
                adjoint_tolerance=o.adjoint_tolerance,
                engine=o.engine,
                projections=o.projections,
            )
            if o.use_panda
            else None
        )
        with routed or contextlib.nullcontext():
            self._ledger = CounterLedger()
            try:
                yield
                reason = "bound" if self._is_bounded else "complete"
            except BoundReached:
                reason = "bound"
                self._is_bounded = True
                _leave_process_group()
            except Terminated:
                reason = "SIGTERM"
                raise
            except SystemExit as error:
                code = exit_status(error)
                reason = f"exit {code}" if code else "bound" if self._is_bounded else "complete"
                raise
            except BaseException as error:
                reason = type(error).__name__
                if isinstance(error, PandaError):
                    self._error = (reason, str(error))
                raise
            finally:
                self._ledger.advance()
                self._log.close(reason)
                self._leave_outcome()

    def _leave_outcome(self) -> None:
        if self._outcome_folder is not None:
            self.outcome().write(self._outcome_folder)

    def outcome(self) -> RunOutcome:
        """What this process did so far."""
        return RunOutcome(
            rank=self.rank,
            batches=self._batches,
            seconds=time.perf_counter() - self._started,
            counters=self._counters.total,
            is_bounded=self._is_bounded,
            memory_log=None if self._log.path is None else str(self._log.path),
            contract=None if self._check.path is None else str(self._check.path),
            violations=self._check.violations,
            error=self._error,
            device=str(self._device),
            peak_bytes=process_peak_bytes(self._device),
            losses_bytes=self._log.losses_bytes,
            memory_log_error=self._log.error,
        )

    @property
    def _counters(self) -> CounterLedger:
        assert self._ledger is not None, "the session is not running"
        return self._ledger

    def _train_one_epoch(self, function: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        if self._is_bound_reached():
            raise BoundReached
        given = bound.arguments
        rank = given.get("rank")
        self.rank = rank if isinstance(rank, int) else self.rank
        self._epoch = self._open_epoch(dict(given))
        if self.options.last_bit_twin and not self._is_twin:
            change_last_bit(given["model"])
            self._is_twin = True
        if self.options.batch_seed is not None:
            if self._repeatable is None:
                self._repeatable = RepeatableBatches(self.options.batch_seed, self.rank)
            self._repeatable.begin_epoch(self._epoch)
        given["train_dl"] = BatchFeed(given["train_dl"], self._before_batch)
        if self.options.stop_after_check and "valid_dl" in given:
            given["valid_dl"] = FirstBatchOnly(given["valid_dl"])
        error: Optional[BaseException] = None
        try:
            result = function(*bound.args, **bound.kwargs)
            self._settle_batch()
            return result
        except BaseException as raised:
            error = raised
            raise
        finally:
            if self._epoch.recorder is not None:
                self._epoch.recorder.end(error)
            self._epoch = None

    def _open_epoch(self, arguments: dict[str, Any]) -> Epoch:
        if self.options.projections is not None:
            try:
                routing.find_projections(arguments["model"], self.options.projections)
            except ValueError as error:
                raise UsageError(f"--panda-{error}") from None
        device = next((p.device for p in arguments["model"].parameters()), torch.device("cpu"))
        self._device = device
        if not self._has_said_options:  # the recipe's own log is open by now
            self._has_said_options = True
            logging.info("panda: %s", self.options.announcement)
            self._proof.begin(device)
        self.options.note_in(arguments.get("params"))
        self._check.prepare(device)
        recorder = self._log.recorder(arguments, device, self._counters, self.rank)
        return Epoch(arguments, device, recorder)

    def _before_batch(self) -> bool:
        self._settle_batch()
        if self._check.is_complete and self.options.stop_after_check:
            raise BoundReached
        self._is_bounded = self._is_bound_reached()
        if self._repeatable is not None and self._epoch is not None:
            self._repeatable.before_batch(self._epoch, self._steps)
        return not self._is_bounded

    def _is_bound_reached(self) -> bool:
        return self.options.max_batches is not None and self._batches >= self.options.max_batches

    def _settle_batch(self) -> None:
        """Close the batch that has just gone round, if one has (resumed epochs skip some)."""
        assert self._epoch is not None
        if self._epoch.recorder is not None:
            self._epoch.recorder.end()
        if self._steps == self._steps_settled:
            return
        self._steps_settled = self._steps
        self._batches += 1
        self._check.verify_routed()
        self._proof.verify(self._counters, self._epoch.model)
        if self._repeatable is not None:
            self._repeatable.after_batch(self._epoch)
        self._leave_outcome()

    def _compute_loss(self, function: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        epoch = self._epoch
        if epoch is None:
            return call_recorded(function, bound)
        if epoch.recorder is not None:
            epoch.recorder.end()
        if not bound.arguments.get("is_training", torch.is_grad_enabled()):
            if self._steps:  # many recipes validate after the first batch: say it before that
                self._proof.verify(self._counters, epoch.model)
            return call_recorded(function, bound)
        self._check.observe(function, bound, epoch, self._counters, self.rank)
        self._steps += 1

        def train() -> Any:
            with self._proof.watching():
                return call_recorded(function, bound)

        if epoch.recorder is None:
            return train()
        return epoch.recorder.around_loss(train, self._steps, epoch.batch_idx_train)


def _leave_process_group() -> None:
    # Every rank reaches its bound after the same batch; rank 0 may still be writing a checkpoint.
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
