"""Runs read back from their folders, to be compared."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from panda_icefall.runs.bounded.arms import read_arm
from panda_icefall.runs.contract.result import FILE_NAME, ContractRecord, read_contracts
from panda_icefall.runs.errors import UsageError, unread
from panda_icefall.runs.memory.reading import (
    count_broken_lines,
    find_memory_logs,
    read_last_run,
)
from panda_icefall.runs.records import Arm
from panda_icefall.runs.report.compared_run import ComparedRun

__all__ = ["read_runs"]

_CHECKED = ("exp", "contract/exp")  # where a folder has a check's report, if not in itself


def _refuse(problem: str) -> None:
    raise UsageError(problem)


def read_runs(
    folders: Sequence[Path], on_problem: Callable[[str], object] = _refuse
) -> list[ComparedRun]:
    """Every run that left a memory log in these folders, in their order.

    Args:
      folders: A recipe's ``--exp-dir``, the folder of a bounded run, or a memory log itself. A
        folder without a log may have the report of a contract check, which is then shown alone.
      on_problem: Told of each folder and file that is not what it should be, and is left out.

    Raises:
      UsageError: By default: of the first problem.
    """
    files: dict[Path, None] = {}  # each once, where a folder is given twice
    for folder in folders:
        try:
            files.update(dict.fromkeys(_files_of(folder, on_problem)))
        except (OSError, UsageError) as error:
            on_problem(f"EXP_DIR: {_said(error, folder)}")
    runs = []
    for file, name in zip(files, _names([*files])):
        try:
            run, left_out = _read(file, name)
        except (OSError, UsageError) as error:
            on_problem(f"EXP_DIR: {_said(error, file)}")
            continue
        runs.append(run)
        for text in left_out:
            on_problem(f"EXP_DIR: {text}")
    return runs


def _said(error: OSError | UsageError, path: Path) -> str:
    return unread(error, path) if isinstance(error, OSError) else str(error)


def _files_of(folder: Path, on_problem: Callable[[str], object]) -> list[Path]:
    """The memory logs of a folder, else its contract report."""
    left_out: list[str] = []

    def leave_out(error: OSError) -> None:
        left_out.append(f"EXP_DIR: {unread(error, folder)}; it is left out")
        on_problem(left_out[-1])

    try:
        return find_memory_logs(folder, leave_out)
    except UsageError as error:
        places = [folder, *(folder / name for name in _CHECKED)]
        checked = _first_with_contract(places)
        if checked is None and left_out:
            return []  # of which the reason was told
        if checked is None:
            names = [str(Path(name, FILE_NAME)) for name in ("", *_CHECKED)]
            raise UsageError(f"{error}; nor has it one of {', '.join(names)}") from None
        return [checked / FILE_NAME]


def _read(file: Path, name: str) -> tuple[ComparedRun, list[str]]:
    """A run, and what of its files was left out."""
    if file.name == FILE_NAME:
        contracts = _contracts_in(file.parent)
        of_check = {"versions": contracts[0].versions}
        return ComparedRun(name, None, Arm(), of_check, contracts, file), []
    rows, arm = read_last_run(file), read_arm(file)
    header = rows[0] if rows and rows[0]["row"] == "header" else {}
    left_out: list[str] = []
    if broken := count_broken_lines(file):
        left_out.append(f"{file}: got {broken} line(s) that are no rows, which are left out")
    contracts = []
    try:
        checked = _checked_in(file, header)
    except OSError as error:
        checked = None
        left_out.append(f"{unread(error, file)}; {name} is shown without its contract")
    if checked is not None:
        try:
            contracts = _contracts_in(checked)
        except UsageError as error:
            left_out.append(f"{error}; {name} is shown without it")
    path = checked / FILE_NAME if checked is not None and contracts else None
    has_ended = bool(rows) and rows[-1]["row"] == "end"
    return ComparedRun(name, file, arm, header, contracts, path, has_ended), left_out


def _contracts_in(folder: Path) -> list[ContractRecord]:
    try:
        return read_contracts(folder)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder / FILE_NAME}: cannot be read: {getattr(error, 'strerror', None) or error}; "
            "run the check again"
        ) from error


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
