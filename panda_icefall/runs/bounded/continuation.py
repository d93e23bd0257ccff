"""An earlier, unfinished run in the same folder: whether it was the same, and what it finished."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import panda_icefall
from panda_icefall.runs.atomic_file import finite_json
from panda_icefall.runs.bounded.config import BoundedConfig
from panda_icefall.runs.bounded.plan import Stage
from panda_icefall.runs.doctor.imports import examine_checkout
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.memory.log import run_versions
from panda_icefall.runs.records import validated
from panda_icefall.runs.run_record import RunRecord, StageRecord

__all__ = [
    "finished_row",
    "move_aside",
    "only_run_in",
    "read_earlier",
    "run_inputs",
    "source_digest",
]

_DONE = ("done", "taken over")


def run_inputs(
    config: BoundedConfig, root: Path, train_py: Path, device: str, data: Path | None
) -> dict[str, Any]:
    """All that a stage's result depends on, by name: what of it changed can be told by comparing.

    The bound in minutes is left out: it decides where a run ends, not what it finds.
    """
    settings = config.model_dump(exclude={"bounds": {"max_minutes"}})
    versions = {**run_versions(torch.device(device)), "icefall": examine_checkout(root).text}
    files = [] if data is None else [path for path in data.glob("*/*") if path.is_file()]
    return {
        **{name: finite_json(value) for name, value in settings.items()},
        "device": device,
        "data folder": "synthetic" if data is None else str(data),
        "data files": _digest((path, _stamp(path)) for path in files),
        "versions": versions,
        "source files": source_digest(train_py, root),
    }


def source_digest(train_py: Path, root: Path | None) -> str:
    """Of a recipe's files, this package's, and icefall's where ``root`` is its checkout."""
    own = Path(panda_icefall.__file__).parent
    shared = [] if root is None else root.glob("icefall/**/*.py")
    sources = [*train_py.parent.glob("*.py"), *shared, *own.glob("**/*.py")]
    # icefall has links to files that are gone.
    return _digest((path, path.read_bytes()) for path in sources if path.is_file())


def _stamp(path: Path) -> bytes:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _digest(files: Iterable[tuple[Path, bytes]]) -> str:
    digest = hashlib.sha256()
    for path, content in sorted(files):
        digest.update(f"{path} {len(content)} ".encode() + content)
    return digest.hexdigest()


def read_earlier(folder: Path, inputs: dict[str, Any]) -> RunRecord | None:
    """What the unfinished run in ``folder`` has reported; None where the folder is new or empty.

    Raises:
      UsageError: The folder holds something else, a finished run, or one with other inputs.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    path = folder / "report.json"
    try:
        earlier = validated(RunRecord, json.loads(path.read_text(encoding="utf-8")), path)
    except (OSError, ValueError, UsageError):
        earlier = RunRecord()
    if earlier.state is None or not earlier.inputs:
        raise UsageError(
            f"--out: got {folder}, which exists and is not empty, expected a new folder or an "
            "unfinished bounded run; remove it or choose another"
        )
    if earlier.state == "complete":
        raise UsageError(
            f"--out: got {folder}, which holds a finished run, expected a new folder or an "
            "unfinished run to continue; remove it or choose another"
        )
    known = earlier.inputs
    changed = [name for name in {**known, **inputs} if known.get(name) != inputs.get(name)]
    if changed:
        raise UsageError(
            f"--out: got {folder}, an unfinished run with other {', '.join(changed)}; expected the "
            "same inputs to continue it; choose a new folder"
        )
    return earlier


def finished_row(earlier: RunRecord | None, stage: Stage) -> StageRecord | None:
    """The record of a stage that the earlier run finished by the same command, if it did."""
    for row in earlier.stages if earlier is not None else []:
        if row.name == stage.name and row.command == stage.shown_command:
            return row if row.state in _DONE else None
    return None


def move_aside(folder: Path) -> None:
    """Keep what an unfinished stage left, under a name that no stage has."""
    if folder.exists():
        attempt = 1
        while (kept := folder.with_name(f"{folder.name}-attempt-{attempt}")).exists():
            attempt += 1
        folder.rename(kept)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of ``folder`` for the enclosed block, or until this process is killed.

    Raises:
      UsageError: Another process has it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"--out: got {folder}, in which another process is running; wait for it, or choose "
                "another"
            ) from error
        yield
