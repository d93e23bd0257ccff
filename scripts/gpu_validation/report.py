"""What a section says, written line by line, so that a section that is killed has said it."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parents[2]
# After one of these a process can use the GPU no more.
_FATAL = "CUDA error"


class Report:
    """Appends to a file of JSON lines.

    Args:
      path: the file.
      seconds: from now on, after which `is_over` says so.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._end = time.monotonic() + seconds

    def fact(self, name: str, value: Any) -> None:
        """Something that the figures depend on."""
        self._write(kind="fact", name=name, value=value)

    def row(self, table: str, **cells: Any) -> None:
        """One row of a table."""
        self._write(kind="row", table=table, cells=cells)

    def check(self, name: str, is_ok: bool, **details: Any) -> None:
        """Something that must hold."""
        self._write(kind="check", name=name, is_ok=bool(is_ok), **details)

    def skip(self, name: str, why: str) -> None:
        """Something that this machine cannot show; no failure."""
        self._write(kind="skipped", name=name, why=why)

    def is_over(self, name: str) -> bool:
        """Whether the time is up, and `name` is left out for that reason."""
        if time.monotonic() < self._end:
            return False
        self._write(kind="cut", name=name)
        return True

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        """A block whose error is a failed check, after which the section goes on.

        Raises:
          RuntimeError: one of CUDA's own errors, after which nothing works.
        """
        try:
            yield
        except Exception as error:
            self.check(name, False, error=error_text(error))
            if _FATAL in str(error):
                raise

    def _write(self, **event: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(event, default=str) + "\n")


@dataclass(frozen=True)
class Setting:
    """What a section runs on.

    Attributes:
      device: ``cuda:0``, or ``cpu`` in a dry run.
      report: where it says what it found.
    """

    device: torch.device
    report: Report

    @property
    def is_dry(self) -> bool:
        """Whether only the form counts: tiny sizes, figures that mean nothing."""
        return self.device.type != "cuda"

    def size(self, full: Any, tiny: Any) -> Any:
        """One of two values: on CUDA, in a dry run."""
        return tiny if self.is_dry else full


def error_text(error: BaseException) -> str:
    """The end of a traceback, without this machine's folders."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return text[-3000:].replace(str(REPO), ".")
