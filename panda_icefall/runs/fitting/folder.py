"""The folder of a search: which one it is, and what of an earlier search stays in it.

What was measured stays: the rows of ``fit.json`` whose outcome memory or the data decided, and
their folders ``trials/ARM-SECONDS``. What a trial left that failed, was killed or was interrupted
can be read until the next search in the folder begins, which removes it and makes that trial again.
A folder in which every trial failed is as good as a new one.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panda_icefall.runs.bounded.request import new_folder
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.fitting.record import Trial, read_record
from panda_icefall.runs.planning.plan import ARMS

__all__ = ["check_folder", "default_folder", "keep_trials_of", "trial_folder"]

_DEFAULT = "panda-fit"
_TRIALS = "trials"
_NAME_OF_TRIAL = re.compile(rf"({'|'.join(ARMS)})-\d+")
_LOCK = ".lock"  # of only_run_in()


def default_folder() -> Path:
    """``panda-fit``, or with a number behind it: the first in which nothing was found."""
    return new_folder(Path(_DEFAULT), _is_free)


def _is_free(folder: Path) -> bool:
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    if _is_empty(folder):
        return True
    try:
        earlier = read_record(folder)
    except (OSError, ValueError, UsageError):
        return False
    return not earlier.has_findings and earlier.state != "running"


def _is_empty(folder: Path) -> bool:
    return all(path.name == _LOCK for path in folder.iterdir())


def check_folder(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Make the folder; it may hold a search with the same inputs, or one that found nothing.

    Raises:
      UsageError: It cannot be made, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = _is_empty(folder)
    except OSError as error:
        raise UsageError(f"--out: cannot make {folder}: {error.strerror}") from error
    if is_empty:
        return
    try:
        earlier = read_record(folder)
    except (OSError, ValueError, UsageError):
        raise UsageError(
            f"--out: got {folder}, which exists and is not empty, expected a new folder or that of "
            "a fit; remove it or choose another"
        ) from None
    changed = [name for name in inputs if earlier.inputs.get(name) != inputs[name]]
    if changed and earlier.has_findings:
        raise UsageError(
            f"--out: got {folder}, a fit with other {', '.join(changed)}; expected the same to go "
            "on with it; choose a new folder"
        )


def trial_folder(out: Path, arm: str, max_duration: int) -> Path:
    """Where a trial leaves its files."""
    return out / _TRIALS / f"{arm}-{max_duration}"


def keep_trials_of(out: Path, measured: Sequence[Trial]) -> None:
    """Remove what other trials than these have left, and nothing else."""
    kept = {trial_folder(out, trial.arm, trial.max_duration) for trial in measured}
    for folder in (out / _TRIALS).glob("*"):
        if folder not in kept and _NAME_OF_TRIAL.fullmatch(folder.name):
            shutil.rmtree(folder, ignore_errors=True)
