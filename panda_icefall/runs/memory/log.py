"""The memory log: JSONL rows per training step, phase and part, and the same in TensorBoard.

A ``header`` row, then for each phase of each step the rows of its parts (``part``: encoder, losses,
backward, optimizer, other, and the phase they lie ``within``) and one of the whole (``phase``), and
an ``end`` row; each with the ``run_id`` of the process that wrote it. Sizes are in bytes, times in
seconds.
"""

import contextlib
import dataclasses
import json
import logging
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import torch

import panda_icefall
from panda_icefall.runs.atomic_file import finite_json
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.memory.probe import MemoryProbe
from panda_icefall.runs.options import PandaOptions

__all__ = ["MemoryLog", "check_writable", "rank_path", "run_versions"]


# The recipe writes these to TensorBoard itself.
_RECIPES_OWN = ("step", "batch_idx_train", "loss", "frames")


def rank_path(path: Path, rank: int) -> Path:
    """``path`` for rank 0, and ``name.rankN.suffix`` beside it for rank N."""
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


def run_versions(device: torch.device) -> dict[str, Any]:
    """Versions and device that a figure depends on."""
    from importlib import metadata

    versions: dict[str, Any] = {
        "panda-icefall": panda_icefall.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    for name in ("k2", "lhotse"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    if device.type == "cuda":
        versions["device_name"] = torch.cuda.get_device_name(device)
    return versions


def check_writable(path: Path) -> None:
    """Refuse a memory log that cannot be written, before a recipe loads its data.

    Raises:
      UsageError: The file cannot be opened.
    """
    _open(path).close()


def _open(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"--panda-memory-log: cannot write {path}, below a file; expected a file in a folder"
        ) from error
    except OSError as error:
        raise UsageError(f"--panda-memory-log: cannot write {path}: {error}") from error


class MemoryLog:
    """Writes rows as they happen, so that a killed run leaves all of them readable.

    Appends: a run that is resumed with the same file adds a header of its own below the rows that
    are there, and its rows can be told by their ``run_id``. A run that ended by itself, or by an
    exception, leaves an ``end`` row that says how; a killed one leaves none. Where a row cannot be
    written (a full disk) training goes on without the log, and one warning says so.

    Args:
      path: File to write for rank 0; other ranks write beside it.
      rank: This process's rank.
      options: Written into the header row.
      device: The training device, written into the header row.
      exp_dir: Where the recipe writes, for the header row.

    Raises:
      UsageError: The file cannot be opened.

    Attributes:
      error: Why the log ends before the run, if it does.
      losses_bytes: The most that the losses of a step added to the memory before them; 0: unknown.
    """

    def __init__(
        self,
        path: Path,
        rank: int,
        options: PandaOptions,
        device: torch.device,
        exp_dir: Path | None = None,
    ) -> None:
        self.path = rank_path(path, rank)
        self.rank = rank
        self.error: str | None = None
        self.losses_bytes = 0
        self._run_id = uuid.uuid4().hex[:12]
        self._file: TextIO | None = _open(self.path)
        settings = {
            k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(options).items()
        }
        self._write(
            {
                "row": "header",
                "time": datetime.now().astimezone().isoformat(timespec="seconds"),
                "argv": sys.argv,
                "exp_dir": None if exp_dir is None else str(exp_dir.absolute()),
                "versions": run_versions(device),
                "options": settings,
                "memory": MemoryProbe(device).read().as_row(),  # before the first step
            }
        )

    def write_phase(self, values: dict[str, Any], tb_writer: Any, step: int) -> None:
        """Write one phase of one step, and its numbers to ``tb_writer`` unless that is ``None``."""
        self._write({"row": "phase", "rank": self.rank, **values})
        _write_scalars(values, f"panda/{values['phase']}", tb_writer, step)

    def write_part(self, values: dict[str, Any], tb_writer: Any, step: int) -> None:
        """As :meth:`write_phase`, for one part (``phase``) of the phase it lies ``within``."""
        self._write({"row": "part", "rank": self.rank, **values})
        _write_scalars(values, f"panda/{values['within']}/{values['phase']}", tb_writer, step)

    def note_losses_bytes(self, added: int) -> None:
        """Keep the most that the losses of a step added to the memory before them."""
        self.losses_bytes = max(self.losses_bytes, added)

    def close(self, reason: str) -> None:
        """Write how the run ended and close the file; a second call does nothing."""
        self._write({"row": "end", "reason": reason})
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            text = json.dumps(finite_json({**row, "run_id": self._run_id}), allow_nan=False)
            self._file.write(text + "\n")
            self._file.flush()
        except OSError as error:
            self.error = str(error)
            logging.warning("panda: the memory log %s ends here: %s", self.path, error)
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _write_scalars(values: dict[str, Any], tag: str, tb_writer: Any, step: int) -> None:
    if tb_writer is None:
        return
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and name not in _RECIPES_OWN:
            tb_writer.add_scalar(f"{tag}/{name}", value, step)
