"""The memory log as a hook: the two phases of every training step, measured and logged."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from panda_icefall.runs.contract.training_copy import unwrap_model
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.memory.log import MemoryLog
from panda_icefall.runs.memory.part_watch import PartMeter, PartWatch, added_by_losses
from panda_icefall.runs.memory.probe import MemoryProbe, return_free_memory
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_calls import Epoch, LossCall
from panda_icefall.runs.records import BACKWARD_UPDATE, COMPUTE_LOSS

__all__ = ["MemoryLogging"]


class PhaseRecorder:
    """Measures one phase at a time and writes it, and its parts, to the memory log when it ends.

    Args:
      log: Where the rows go.
      ledger: Books what routing counted in each phase.
      device: The training device. On CUDA it is synchronised at every boundary between two parts.
        On a CPU freed memory goes back to the system before each phase, at some page faults' cost.
      tb_writer: The recipe's TensorBoard writer, or ``None``.
      model: The recipe's model, without a DDP wrapper; ``None``: its encoder is no part.
      optimizer: The recipe's optimizer; ``None``: its step is no part.
      scaler: The recipe's ``GradScaler``, or ``None``.
      projections: What the simple loss's projections are called; ``None``: as in icefall.
    """

    def __init__(
        self,
        log: MemoryLog,
        ledger: CounterLedger,
        device: torch.device,
        tb_writer: Any,
        *,
        model: nn.Module | None = None,
        optimizer: Any = None,
        scaler: Any = None,
        projections: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._is_on_cpu = device.type == "cpu"
        self._meter = PartMeter(MemoryProbe(device))
        self._watch = PartWatch(self._meter, model, optimizer, projections)
        self._tb_writer = tb_writer
        self._scaler = scaler
        self._phase: str | None = None
        self._values: dict[str, Any] = {}
        self._noted: dict[str, Any] = {}

    def around_loss(
        self, compute_loss: Callable[[], Any], step: int, batch_idx_train: int | None
    ) -> Any:
        """Call the recipe's ``compute_loss`` as a phase, and begin the phase that follows it.

        Args:
          compute_loss: The call; it gives a loss, or a tuple of it and the recipe's own counts.
          step: Training step of this process, from 1.
          batch_idx_train: The recipe's own count of training batches, if it keeps one.

        Returns:
          What the call gave.
        """
        self.begin(COMPUTE_LOSS, step, batch_idx_train)
        try:
            result = compute_loss()
        except BaseException as error:
            self.end(error)
            raise
        loss, info = (*result, None)[:2] if isinstance(result, tuple) else (result, None)
        self.note_loss(loss, info)
        self.begin(BACKWARD_UPDATE, step, batch_idx_train)
        return result

    def begin(self, phase: str, step: int, batch_idx_train: int | None) -> None:
        """End the phase that is open, if any, and begin ``phase`` of training step ``step``."""
        self.end()
        self._ledger.advance()
        if self._is_on_cpu:  # else the resident set keeps the largest step so far
            return_free_memory()
        self._phase = phase
        self._values = {"step": step}
        if batch_idx_train is not None:
            self._values["batch_idx_train"] = batch_idx_train
        self._noted = {}
        self._watch.install(has_forward=phase == COMPUTE_LOSS)
        self._meter.start()

    def note_loss(self, loss: Any, info: Any) -> None:
        """Add what ``compute_loss`` returned to the open phase's row.

        Args:
          loss: The recipe's loss; a tensor with a NaN or infinity in it is counted. Synchronises.
          info: The recipe's own loss and frame count, if it gives them.
        """
        if isinstance(info, Mapping):
            for name in ("loss", "frames"):
                if isinstance(info.get(name), (int, float)):
                    self._noted[name] = info[name]
        if isinstance(loss, torch.Tensor):
            self._noted["losses_nonfinite"] = int(not loss.detach().isfinite().all())

    def end(self, error: BaseException | None = None) -> None:
        """Write the rows of the open phase; does nothing where none is open."""
        if self._phase is None:
            return
        phase, self._phase = self._phase, None
        self._watch.remove()
        whole, parts = self._meter.finish()
        readings = {name: part.reading for name, part in parts.items()}
        self._log.note_losses_bytes(added_by_losses(readings) or 0)
        step = self._values.get("batch_idx_train", self._values["step"])
        for name, part in parts.items():
            values = {**self._values, "phase": name, "within": phase, **part.as_row()}
            self._log.write_part(values, self._tb_writer, step)
        values = {
            **self._values,
            "phase": phase,
            **self._noted,
            **whole.as_row(),
            **dataclasses.asdict(self._ledger.advance()),
        }
        if phase == BACKWARD_UPDATE and self._scaler is not None and self._scaler.is_enabled():
            values["grad_scale"] = float(self._scaler.get_scale())
        if error is not None:
            values["error"] = f"{type(error).__name__}: {error}"
        self._log.write_phase(values, self._tb_writer, step)


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
            self._log = MemoryLog(self._path, epoch.rank, self._options, epoch.device, epoch.folder)
            if epoch.device.type == "cuda":
                logging.info(
                    "panda: the memory log resets the peak statistics of %s at each part of a "
                    "step: torch.cuda.max_memory_allocated() is that of the part, and the log and "
                    "the summary have that of the run",
                    epoch.device,
                )
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
