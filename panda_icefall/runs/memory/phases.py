"""The two phases of a training step, measured and logged: ``compute_loss``, ``backward_update``."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Callable, Optional

import torch
from torch import nn

from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.memory.log import MemoryLog
from panda_icefall.runs.memory.part_watch import LOSS_PARTS, Part, PartMeter, PartWatch
from panda_icefall.runs.memory.probe import MemoryProbe, return_free_memory

__all__ = ["PhaseRecorder"]


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
        model: Optional[nn.Module] = None,
        optimizer: Any = None,
        scaler: Any = None,
        projections: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._is_on_cpu = device.type == "cpu"
        self._meter = PartMeter(MemoryProbe(device))
        self._watch = PartWatch(self._meter, model, optimizer, projections)
        self._tb_writer = tb_writer
        self._scaler = scaler
        self._phase: Optional[str] = None
        self._values: dict[str, Any] = {}
        self._noted: dict[str, Any] = {}

    def around_loss(
        self, compute_loss: Callable[[], Any], step: int, batch_idx_train: Optional[int]
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

    def begin(self, phase: str, step: int, batch_idx_train: Optional[int]) -> None:
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

    def end(self, error: Optional[BaseException] = None) -> None:
        """Write the rows of the open phase; does nothing where none is open."""
        if self._phase is None:
            return
        phase, self._phase = self._phase, None
        self._watch.remove()
        whole, parts = self._meter.finish()
        self._log.note_losses_bytes(_added_by_losses(parts))
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


def _added_by_losses(parts: Mapping[str, Part]) -> int:
    """The peak of a phase's losses above the memory before the first of them, in bytes."""
    losses = [part for name, part in parts.items() if name in LOSS_PARTS]
    if not losses or any(part.reading.is_since_start for part in losses):
        return 0
    return max(part.reading.peak_bytes for part in losses) - losses[0].before_bytes
