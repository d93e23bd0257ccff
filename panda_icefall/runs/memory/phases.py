"""The two phases of a training step, measured and logged: ``compute_loss``, ``backward_update``."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Optional

import torch

from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.memory.log import MemoryLog
from panda_icefall.runs.memory.probe import MemoryProbe

__all__ = ["PhaseRecorder"]


class PhaseRecorder:
    """Measures one phase at a time and writes it to the memory log when it ends.

    Args:
      log: Where the rows go.
      ledger: Books what routing counted in each phase.
      device: The training device.
      tb_writer: The recipe's TensorBoard writer, or ``None``.
    """

    def __init__(
        self, log: MemoryLog, ledger: CounterLedger, device: torch.device, tb_writer: Any
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._probe = MemoryProbe(device)
        self._tb_writer = tb_writer
        self._phase: Optional[str] = None
        self._values: dict[str, Any] = {}
        self._started = 0.0

    def begin(self, phase: str, step: int, batch_idx_train: Optional[int]) -> None:
        """End the phase that is open, if any, and begin ``phase`` of training step ``step``."""
        self.end()
        self._ledger.advance()
        self._phase = phase
        self._values = {"step": step, "phase": phase}
        if batch_idx_train is not None:
            self._values["batch_idx_train"] = batch_idx_train
        self._probe.start()
        self._started = time.perf_counter()

    def note_loss(self, info: Any) -> None:
        """Add the recipe's own loss and frame count to the open phase's row, if it gives them."""
        if isinstance(info, Mapping):
            for name in ("loss", "frames"):
                if isinstance(info.get(name), (int, float)):
                    self._values[name] = info[name]

    def end(self, error: Optional[BaseException] = None) -> None:
        """Write the row of the open phase; does nothing where none is open."""
        if self._phase is None:
            return
        self._phase = None
        reading = self._probe.read()
        values = {
            **self._values,
            "seconds": time.perf_counter() - self._started,
            **reading.as_row(),
            **dataclasses.asdict(self._ledger.advance()),
        }
        if error is not None:
            values["error"] = f"{type(error).__name__}: {error}"
        step = self._values.get("batch_idx_train", self._values["step"])
        self._log.write_phase(values, self._tb_writer, step)
