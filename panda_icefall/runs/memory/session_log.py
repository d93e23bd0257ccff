"""The memory log of a session: opened at its first epoch, with a recorder for every epoch."""

from pathlib import Path
from typing import Any, Optional

import torch

from panda_icefall.runs.contract.training_copy import unwrap_model
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.memory.log import MemoryLog
from panda_icefall.runs.memory.phases import PhaseRecorder
from panda_icefall.runs.options import PandaOptions

__all__ = ["SessionLog"]


class SessionLog:
    """Opens the log when the first epoch tells the device; none where the options ask for none.

    Args:
      options: What the user asked for.
    """

    def __init__(self, options: PandaOptions) -> None:
        self._options = options
        self._log: Optional[MemoryLog] = None

    @property
    def path(self) -> Optional[Path]:
        """The log of this process, once it is open."""
        return None if self._log is None else self._log.path

    @property
    def losses_bytes(self) -> int:
        """The most that the losses of a step added to the memory before them; 0: unknown."""
        return 0 if self._log is None else self._log.losses_bytes

    @property
    def error(self) -> Optional[str]:
        """Why the log ends before the run, if it does."""
        return None if self._log is None else self._log.error

    def recorder(
        self, arguments: dict[str, Any], device: torch.device, ledger: CounterLedger, rank: int
    ) -> Optional[PhaseRecorder]:
        """Measures the phases of one epoch's steps; None where no log was asked for.

        Args:
          arguments: What the recipe's ``train_one_epoch`` was given, by name.
          device: The training device.
          ledger: Books what routing counts in each phase.
          rank: The process's rank: each has a log of its own.

        Raises:
          UsageError: The log cannot be opened.
        """
        if self._options.memory_log is None:
            return None
        if self._log is None:
            self._log = MemoryLog(self._options.memory_log, rank, self._options, device)
        return PhaseRecorder(
            self._log,
            ledger,
            device,
            arguments.get("tb_writer"),
            model=unwrap_model(arguments["model"]),
            optimizer=arguments.get("optimizer"),
            scaler=arguments.get("scaler"),
            projections=self._options.projections,
        )

    def close(self, reason: str) -> None:
        """Write how the run ended, if the log is open."""
        if self._log is not None:
            self._log.close(reason)
