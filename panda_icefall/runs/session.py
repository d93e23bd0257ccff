"""Wrappers around a recipe's ``compute_loss`` and ``train_one_epoch`` in one process."""

import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from panda_icefall import routing
from panda_icefall.routing import PandaError
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.errors import BoundReached, UsageError, exit_status
from panda_icefall.runs.hooks import call_each, hooks_for
from panda_icefall.runs.memory.probe import process_peak_bytes
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_calls import (
    BatchFeed,
    Epoch,
    FirstBatchOnly,
    LossCall,
    with_params,
    wrap_function,
)
from panda_icefall.runs.records import RunOutcome
from panda_icefall.runs.report.console import open_console
from panda_icefall.runs.termination import Terminated
from panda_icefall.swaps import Swaps

__all__ = ["TrainingSession"]


class TrainingSession:
    """Everything that is put around the training of one process: its hooks, and its end.

    Args:
      options: What the user asked for.
      rank: The process's rank, until ``train_one_epoch`` is called with one.
      outcome_folder: Where the outcome so far is left after every batch, for a parent process
        that may outlive this one; None: nowhere.
    """

    def __init__(
        self, options: PandaOptions, rank: int = 0, outcome_folder: Path | None = None
    ) -> None:
        self.options = options
        self._outcome_folder = outcome_folder
        self.rank = rank
        self.console = open_console()
        self._started = time.perf_counter()
        self._ledger: CounterLedger | None = None
        self._hooks = hooks_for(options, self.console)
        self._device = torch.device("cpu")
        self._wrapped = Swaps()
        self._epoch: Epoch | None = None
        self._batches = 0
        self._steps = 0
        self._steps_settled = 0
        self._is_bounded = False
        self._has_begun = False
        self._error: tuple[str, str] | None = None

    def install(self, namespace: dict[str, Any], where: str) -> None:
        """Put the wrappers into the globals of a recipe.

        Args:
          namespace: The globals in which the recipe's functions look each other up.
          where: The recipe's path, for errors.

        Raises:
          UsageError: A function or one of its parameters is missing.
        """
        routing.replace_awaited()  # the recipe has been imported by now
        if self.options.recipe_params:
            changed = functools.partial(with_params, self.options.recipe_params)
            wrap_function(self._wrapped, namespace, "get_params", changed, [], where)
        needed = ["model", "train_dl"] + ["optimizer"] * bool(self.options.check_batches)
        train = wrap_function(
            self._wrapped, namespace, "train_one_epoch", self._train_one_epoch, needed, where
        )
        # A recipe may import its training loop; compute_loss is then looked up where that lives.
        home = getattr(train, "__globals__", namespace)
        needed = ["model", "batch"]
        wrap_function(self._wrapped, home, "compute_loss", self._compute_loss, needed, where)

    def uninstall(self) -> None:
        """Put back what :meth:`install` replaced, also where it failed half-way."""
        self._wrapped.undo()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Routing in place, if asked for, while the recipe runs; a reached bound ends it quietly.

        Raises:
          NotRoutedError: No loss was routed in the first training batch.
        """
        routed = self.options.routed() if self.options.use_panda else contextlib.nullcontext()
        with routing.substituted(), routed:
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
                try:
                    call_each(functools.partial(hook.close, reason) for hook in self._hooks)
                finally:
                    self._leave_outcome()

    def _leave_outcome(self) -> None:
        if self._outcome_folder is None:
            return
        try:
            self.outcome().write(self._outcome_folder)
        except OSError as error:  # a full disk ends no training
            logging.warning(
                "panda: the outcome of rank %d, for the summary, could not be written to %s: %s",
                self.rank, self._outcome_folder, error,
            )  # fmt: skip

    def outcome(self) -> RunOutcome:
        """What this process did so far."""
        of_hooks = [hook.outcome() for hook in self._hooks]
        return RunOutcome(
            rank=self.rank,
            batches=self._batches,
            seconds=time.perf_counter() - self._started,
            counters=self._counters.total,
            is_bounded=self._is_bounded,
            error=self._error,
            device=str(self._device),
            peak_bytes=process_peak_bytes(self._device),
            **{name: value for found in of_hooks for name, value in found.items()},
        )

    @property
    def _counters(self) -> CounterLedger:
        assert self._ledger is not None, "the session is not running"
        return self._ledger

    def _train_one_epoch(self, function: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        if self._is_bound_reached():
            raise BoundReached
        given = bound.arguments
        self._epoch = self._open_epoch(dict(given))
        try:
            with contextlib.ExitStack() as entered:
                for hook in self._hooks:
                    entered.enter_context(hook.epoch(self._epoch))
                given.update(self._epoch.arguments)  # a hook may give others, as loaders
                given["train_dl"] = BatchFeed(given["train_dl"], self._before_batch)
                if self.options.stop_after_check and "valid_dl" in given:
                    given["valid_dl"] = FirstBatchOnly(given["valid_dl"])
                result = function(*bound.args, **bound.kwargs)
                self._settle_batch()
                return result
        finally:
            self._epoch = None

    def _open_epoch(self, arguments: dict[str, Any]) -> Epoch:
        model, rank = arguments["model"], arguments.get("rank")
        self.rank = rank if isinstance(rank, int) else self.rank
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        if not self._has_begun:  # the recipe's own log is open by now
            self._has_begun = True
            self._begin(model)
        self.options.note_in(arguments.get("params"))
        return Epoch(arguments, self._device, self._counters, self.rank, self._steps)

    def _begin(self, model: torch.nn.Module) -> None:
        if self.options.projections is not None:
            try:
                routing.find_projections(model, self.options.projections)
                routing.find_ctc_heads(model, self.options.projections)
            except ValueError as error:
                raise UsageError(f"--panda-{error}") from None
        logging.info("panda: %s", self.options.announcement)

    def _before_batch(self) -> bool:
        self._settle_batch()
        assert self._epoch is not None
        for hook in self._hooks:
            hook.before_batch(self._epoch)
        self._is_bounded = self._is_bound_reached()
        return not self._is_bounded

    def _is_bound_reached(self) -> bool:
        return self.options.max_batches is not None and self._batches >= self.options.max_batches

    def _settle_batch(self) -> None:
        """Close the batch that has just been trained, if one has (resumed epochs skip some)."""
        epoch = self._epoch
        assert epoch is not None
        if self._steps == self._steps_settled:
            return
        self._steps_settled = self._steps
        self._batches += 1
        call_each(functools.partial(hook.after_batch, epoch) for hook in self._hooks)
        self._leave_outcome()

    def _compute_loss(self, function: Callable[..., Any], bound: inspect.BoundArguments) -> Any:
        call, epoch = LossCall(function, bound), self._epoch
        if epoch is None:
            return call()
        for hook in self._hooks:
            hook.before_loss(epoch, call)
        if not call.is_training:
            return call()
        self._steps = epoch.steps = self._steps + 1
        compute: Callable[[], Any] = call
        for hook in reversed(self._hooks):
            compute = functools.partial(hook.around_loss, epoch, compute)
        return compute()


def _leave_process_group() -> None:
    # Every rank reaches its bound after the same batch; rank 0 may still be writing a checkpoint.
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
