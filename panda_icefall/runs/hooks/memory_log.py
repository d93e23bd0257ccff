"""The memory log as a hook: opened at the first epoch, with a recorder for every epoch."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from panda_icefall.runs.contract.training_copy import unwrap_model
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.memory.log import MemoryLog
from panda_icefall.runs.memory.phases import PhaseRecorder
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_calls import Epoch, LossCall

__all__ = ["MemoryLogging"]


class MemoryLogging(Hook):
    """Measures the two phases of every training step and writes them to the log.

    Args:
      path: The log of rank 0; each rank has one of its own.
      options: Written into its header.
    """

    def __init__(self, path: Path, options: PandaOptions) -> None:
        self._path = path
        self._options = options
        self._log: MemoryLog | None = None
        self._recorder: PhaseRecorder | None = None

    @contextlib.contextmanager
    def epoch(self, epoch: Epoch) -> Iterator[None]:
        """The first epoch, which tells device and rank, opens the log.

        Raises:
          UsageError: The log cannot be opened.
        """
        if self._log is None:
            self._log = MemoryLog(self._path, epoch.rank, self._options, epoch.device)
        self._recorder = PhaseRecorder(
            self._log,
            epoch.ledger,
            epoch.device,
            epoch.arguments.get("tb_writer"),
            model=unwrap_model(epoch.model),
            optimizer=epoch.arguments.get("optimizer"),
            scaler=epoch.arguments.get("scaler"),
            projections=self._options.projections,
        )
        try:
            yield
        except BaseException as error:
            self._recorder.end(error)
            raise
        self._recorder.end()

    def before_loss(self, epoch: Epoch, call: LossCall) -> None:
        """A phase ends ahead of what is no part of it: a check, a validation."""
        self._of_epoch.end()

    def around_loss(self, epoch: Epoch, compute: Callable[[], Any]) -> Any:
        """One phase around ``compute_loss``; the next one begins behind it."""
        return self._of_epoch.around_loss(compute, epoch.steps, epoch.batch_idx_train)

    def after_batch(self, epoch: Epoch) -> None:
        """The phase that began behind ``compute_loss`` ends."""
        self._of_epoch.end()

    def close(self, reason: str) -> None:
        """Write how the run ended, if the log is open."""
        if self._log is not None:
            self._log.close(reason)

    def outcome(self) -> dict[str, Any]:
        """Where the log is, whether it is whole, and the most that the losses of a step added."""
        if self._log is None:
            return {}
        return {
            "memory_log": str(self._log.path),
            "losses_bytes": self._log.losses_bytes,
            "memory_log_error": self._log.error,
        }

    @property
    def _of_epoch(self) -> PhaseRecorder:
        assert self._recorder is not None, "no epoch has begun"
        return self._recorder
