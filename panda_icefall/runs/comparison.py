"""Runs read back from their folders, to be compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panda_icefall.runs.bounded.arms import read_arm
from panda_icefall.runs.contract.result import FILE_NAME, read_contracts
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.memory.log import find_memory_logs, read_last_run
from panda_icefall.runs.records import Arm
from panda_icefall.runs.report.comparison import ComparedRun

__all__ = ["read_runs"]


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Every run that left a memory log in these folders, in their order.

    Args:
      folders: A recipe's ``--exp-dir``, the folder of a bounded run, or a memory log itself. A
        folder without a log may have the report of a contract check, which is then shown alone.

    Raises:
      UsageError: A folder has neither, or a file of it is not what it should be.
    """
    files = [file for folder in folders for file in _files_of(folder)]
    names = _names(files)
    return [_read(file, name) for file, name in zip(files, names)]


def _files_of(folder: Path) -> list[Path]:
    """The memory logs of a folder, else its contract report."""
    try:
        return find_memory_logs(folder)
    except UsageError:
        checked = _first_with_contract([folder, folder / "exp"])
        if checked is None:
            raise
        return [checked / FILE_NAME]


def _read(file: Path, name: str) -> ComparedRun:
    try:
        if file.name == FILE_NAME:
            contracts = read_contracts(file.parent)
            header = {"versions": contracts[0].versions}
            return ComparedRun(name, None, Arm(), header, contracts, file)
        rows = read_last_run(file)
        header = rows[0] if rows and rows[0]["row"] == "header" else {}
        checked = _checked_in(file, header)
        contracts = [] if checked is None else read_contracts(checked)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    path = None if checked is None else checked / FILE_NAME
    return ComparedRun(name, file, read_arm(file), header, contracts, path)


def _checked_in(log: Path, header: Mapping[str, Any]) -> Path | None:
    """The folder of the contract report that belongs to a memory log.

    That is the run's ``--exp-dir``, which its log names, or which lies beside it where the folder
    was moved. A bounded run checks the contract for its routed runs in a stage of its own.
    """
    named = header.get("exp_dir")
    folders = [Path(named)] if isinstance(named, str) else []
    folders += [log.parent, log.parent / "exp"]
    if (header.get("options") or {}).get("use_panda"):
        folders.append(log.parent.parent / "contract" / "exp")
    return _first_with_contract(folders)


def _first_with_contract(folders: Sequence[Path]) -> Path | None:
    return next((folder for folder in folders if (folder / FILE_NAME).is_file()), None)


def _names(files: Sequence[Path]) -> list[str]:
    """The folder of each file, with the folders above or its own name where they are the same."""
    for depth in (1, 2, 3):
        names = ["/".join(file.absolute().parts[-1 - depth : -1]) for file in files]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]
