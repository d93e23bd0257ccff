"""Runs read back from their folders, to be compared."""

import json
from collections.abc import Sequence
from pathlib import Path

from panda_icefall.runs.bounded.arms import read_arm
from panda_icefall.runs.contract import result
from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.memory.log import find_memory_logs, read_last_run
from panda_icefall.runs.records import validated
from panda_icefall.runs.report.comparison import ComparedRun

__all__ = ["read_runs"]


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Every run that left a memory log in these folders, in their order.

    Args:
      folders: A recipe's ``--exp-dir``, the folder of a bounded run, or a memory log itself.

    Raises:
      UsageError: A folder has none, or a file of it is not what it should be.
    """
    logs = [log for folder in folders for log in find_memory_logs(folder)]
    names = _names(logs)
    return [_read(log, name) for log, name in zip(logs, names)]


def _read(log: Path, name: str) -> ComparedRun:
    try:
        rows = read_last_run(log)
        path = log.with_name(result.FILE_NAME)
        contract = None
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            contract = validated(ContractRecord, content, path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{log.parent}: cannot be read: {error}") from error
    header = rows[0] if rows and rows[0]["row"] == "header" else {}
    return ComparedRun(name, log, read_arm(log), header, contract)


def _names(logs: Sequence[Path]) -> list[str]:
    """The folder of each log, with the folders above or the file's name where they are the same."""
    for depth in (1, 2, 3):
        names = ["/".join(log.absolute().parts[-1 - depth : -1]) for log in logs]
        if len(set(names)) == len(names):
            return names
    return [str(log) for log in logs]
