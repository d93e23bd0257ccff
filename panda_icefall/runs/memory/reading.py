"""Memory logs read back: found in a folder, row by row, and while another process writes one."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.records import BACKWARD_UPDATE

__all__ = ["StepCount", "count_broken_lines", "find_memory_logs", "read_last_run"]

_HEADER = '{"row": "header"'
_END_OF_STEP = json.dumps({"phase": BACKWARD_UPDATE})[1:-1].encode()


def _raise(error: OSError) -> None:
    raise error


def find_memory_logs(
    folder: Path, on_unreadable: Callable[[OSError], object] = _raise
) -> list[Path]:
    """The memory logs in a folder, those of its own first; or the one that is named.

    Args:
      folder: A folder, or a file.
      on_unreadable: Told why a file in it cannot be read, which is then left out.

    Raises:
      OSError: The folder cannot be read; by default also a file in it.
      UsageError: There is none.
    """
    given = [folder] if folder.is_file() else sorted(folder.glob("*.jsonl"))
    found = _memory_logs_of(given, on_unreadable) or _memory_logs_of(
        sorted(folder.glob("*/*.jsonl")), on_unreadable
    )
    if not found:
        place = folder.parent if folder.is_file() else folder
        raise UsageError(
            f"{folder}: {_what_is_there(folder)}, expected a file that --panda-memory-log wrote; "
            f"run the recipe with --panda-memory-log {place}/memory.jsonl --panda-max-batches 20"
        )
    return found


def _memory_logs_of(
    files: Iterable[Path], on_unreadable: Callable[[OSError], object]
) -> list[Path]:
    found = []
    for file in files:
        try:
            if ".rank" not in file.name and _is_memory_log(file):
                found.append(file)
        except OSError as error:
            on_unreadable(error)
    return found


def _is_memory_log(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline().startswith(_HEADER)


def _what_is_there(folder: Path) -> str:
    """What there is in the place of memory logs."""
    if not folder.exists():
        return "does not exist"
    if folder.is_file():
        return "its first line is no header of a memory log"
    if not any(folder.iterdir()):
        return "an empty folder"
    others = [path for depth in ("*.jsonl", "*/*.jsonl") for path in sorted(folder.glob(depth))]
    if others:
        return f"got {others[0].name}, whose first line is no header of a memory log"
    return "got no memory log in it, no *.jsonl there or one folder below"


def read_last_run(path: Path) -> list[dict[str, Any]]:
    """The rows that the last run of a memory log wrote; another may have written between them.

    Args:
      path: A log, which may end within a row, and may be of a version without run ids. A line that
        is no row is left out.

    Returns:
      Its rows from the header on.

    Raises:
      OSError: The file cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for row in _rows_of(path):
        if row is not None:
            if row["row"] == "header":
                rows = []
            rows.append(row)
    run_id = rows[0].get("run_id") if rows else None
    return [row for row in rows if row.get("run_id", run_id) == run_id]


def count_broken_lines(path: Path) -> int:
    """The lines of a log's last run that are no rows, but for the last, as a killed run leaves it.

    Raises:
      OSError: The file cannot be read.
    """
    broken = 0
    for row in list(_rows_of(path))[:-1]:
        if row is None:
            broken += 1
        elif row["row"] == "header":
            broken = 0
    return broken


def _rows_of(path: Path) -> Iterator[dict[str, Any] | None]:
    """The row in each line; None: there is none."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        row = None
        with contextlib.suppress(ValueError):
            # A killed process leaves half a row, behind which the next run's header begins.
            row = json.loads(line[max(0, line.rfind(_HEADER)) :])
        yield row if isinstance(row, dict) and "row" in row else None


class StepCount:
    """Counts the training steps in a memory log while another process writes it.

    Args:
      path: The log of one run, which need not be there yet.
      mark: What is counted in whole lines; of another file than a memory log, another mark.
    """

    def __init__(self, path: Path, mark: bytes = _END_OF_STEP) -> None:
        self._path = path
        self._mark = mark
        self._offset = 0
        self._steps = 0

    def read(self) -> int:
        """The steps whose last row has been written."""
        with contextlib.suppress(OSError), self._path.open("rb") as log:
            log.seek(self._offset)
            rows = log.read()
            whole = rows[: rows.rfind(b"\n") + 1]  # the last row may be half written
            self._offset += len(whole)
            self._steps += whole.count(self._mark)
        return self._steps
