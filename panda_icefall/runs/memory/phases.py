"""The two phases of a training step, measured and logged: ``compute_loss``, ``backward_update``."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.memory.log import MemoryLog
from panda_icefall.runs.memory.part_watch import ENCODER, LOSS_PARTS, PartMeter, PartWatch
from panda_icefall.runs.memory.probe import MemoryProbe, MemoryReading, return_free_memory

__all__ = ["PhaseRecorder", "added_by_losses"]


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
        self.begin("compute_loss", step, batch_idx_train)
        try:
            result = compute_loss()
        except BaseException as error:
            self.end(error)
            raise
        loss, info = (*result, None)[:2] if isinstance(result, tuple) else (result, None)
        self.note_loss(loss, info)
        self.begin("backward_update", step, batch_idx_train)
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
        self._watch.install(has_forward=phase == "compute_loss")
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
        if phase == "backward_update" and self._scaler is not None and self._scaler.is_enabled():
            values["grad_scale"] = float(self._scaler.get_scale())
        if error is not None:
            values["error"] = f"{type(error).__name__}: {error}"
        self._log.write_phase(values, self._tb_writer, step)


def added_by_losses(readings: Mapping[str, MemoryReading]) -> int | None:
    """What the losses of a step added, in forward, to the memory that the encoder had left.

    Args:
      readings: Memory at the end of each part of the step, and its peak, by the part's name.

    Returns:
      Bytes; ``None`` where the encoder, the losses or their peaks were not measured.
    """
    losses = [readings[name] for name in LOSS_PARTS if name in readings]
    encoder = readings.get(ENCODER)
    if not losses or encoder is None or any(part.is_since_start for part in (*losses, encoder)):
        return None
    return max(0, max(part.peak_bytes for part in losses) - encoder.current_bytes)
