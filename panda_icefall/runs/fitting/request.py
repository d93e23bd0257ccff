"""What is asked of a search, checked in full before anything starts."""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from panda_icefall.normalizer.workspace import MIB
from panda_icefall.runs.bounded.continuation import source_digest
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.fitting.folder import check_folder, default_folder
from panda_icefall.runs.memory.log import run_versions
from panda_icefall.runs.panda_arguments import split_panda_arguments
from panda_icefall.runs.planning.plan import ARMS, LONGEST
from panda_icefall.runs.planning.recipe_sizes import recipe_defaults
from panda_icefall.runs.recipe_module import RecipeFile, wants_help

__all__ = ["FitRequest", "check_fit"]

_START = 200  # seconds, where neither the command line nor the recipe says any
# What a trial sets itself, or would end or disturb it.
_REFUSED = (
    "--panda-max-batches",
    "--panda-check-batches",
    "--panda-memory-log",
    "--panda-verify-every",
    "--panda-last-bit-twin",
)
_OWN = ("--limit-mib", "--max-trials", "--max-minutes", "--scan-batches", "--tolerance")
_FROM_THE_START = {"--start-epoch": "1", "--start-batch": "0"}
_SET_BY_TRIALS = ("--max-duration", "--exp-dir", "--use-panda", *_FROM_THE_START)


@dataclass(frozen=True)
class FitRequest:
    """A search that can be started.

    Attributes:
      train_py: The recipe.
      words: Its arguments and PANDA's, without ``--max-duration``, ``--exp-dir``, ``--use-panda``.
      arms: Which of ``dense`` and ``routed`` are tried.
      start: The first ``--max-duration`` tried, seconds.
      longest: None above is tried.
      device: ``cpu`` or ``cuda``.
      limit_bytes: What a process may hold; None: what the device has.
      scan_batches: Batches of the epoch that are looked at; None: all.
      most_trials: For each arm.
      tolerance: The relative width of the interval at which the search ends.
      max_minutes: Of the whole search.
      out: Folder to write; it exists.
      gpu: Name and memory of the GPU; None on a CPU.
    """

    train_py: Path
    words: list[str]
    arms: tuple[str, ...]
    start: int
    longest: int
    device: str
    limit_bytes: int | None
    scan_batches: int | None
    most_trials: int
    tolerance: float
    max_minutes: float
    out: Path
    gpu: str | None

    @property
    def inputs(self) -> dict[str, Any]:
        """All that a trial's outcome depends on, by name."""
        return {
            "TRAIN_PY": str(self.train_py),
            "ARGS": self.words,
            "folder": str(Path.cwd()),
            "device": self.device,
            "--limit-mib": self.limit_bytes,
            "--scan-batches": self.scan_batches,
            "versions": run_versions(torch.device("cpu")),
            "GPU": self.gpu,
            "source files": source_digest(self.train_py, _icefall_root()),
        }


def check_fit(
    train_py: str,
    arguments: Sequence[str],
    *,
    device: str | None,
    limit_mib: float | None,
    scan_batches: int | None,
    most_trials: int,
    tolerance: float,
    max_minutes: float,
    longest: int = LONGEST,
    out: Path | None = None,
) -> FitRequest:
    """Check everything that can be wrong before a trial.

    Args:
      train_py: The recipe's training script.
      arguments: The recipe's arguments and PANDA's, as they are typed.
      device: ``cpu`` or ``cuda``; CUDA where torch sees a GPU if not given.
      limit_mib: What a process may hold; needed on a CPU.
      scan_batches, most_trials, tolerance, max_minutes, longest: As in ``FitRequest``.
      out: Folder to write: a new one, or that of an earlier search with the same arguments, whose
        trials are taken over; a new ``panda-fit`` if not given.

    Raises:
      UsageError: It cannot be run.
    """
    recipe = RecipeFile(train_py)
    recipe.require_guard()
    if wants_help(arguments):
        raise UsageError(
            f"ARGS: got --help, expected training; panda-icefall run {train_py} --help has it"
        )
    for flag in _OWN:
        if any(word.partition("=")[0] == flag for word in arguments):
            raise UsageError(f"{flag}: got it after TRAIN_PY, expected before; move it there")
    words, start, arms = _own_words(recipe.path, list(arguments))
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("--device: got cuda, but torch sees no GPU; expected cpu, or a GPU")
    chosen = device or ("cuda" if has_cuda else "cpu")
    _check_numbers(chosen, limit_mib, tolerance, max_minutes)
    folder = (default_folder() if out is None else out).expanduser().absolute()
    request = FitRequest(
        train_py=recipe.path,
        words=words,
        arms=arms,
        start=start,
        longest=longest,
        device=chosen,
        limit_bytes=None if limit_mib is None else round(limit_mib * MIB),
        scan_batches=scan_batches,
        most_trials=most_trials,
        tolerance=tolerance,
        max_minutes=max_minutes,
        out=folder,
        gpu=_gpu() if chosen == "cuda" else None,
    )
    check_folder(folder, request.inputs)
    return request


def _gpu() -> str:
    """Asked for in a process of its own: one that has used a GPU keeps memory of it."""
    ask = "import torch; p = torch.cuda.get_device_properties(0); print(p.name, p.total_memory)"
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if told.returncode:
        words = told.stderr.strip().rpartition("\n")[2]
        raise UsageError(f"--device: got cuda, whose GPU cannot be used ({words}); expected cpu")
    return told.stdout.strip()


def _icefall_root() -> Path | None:
    found = importlib.util.find_spec("icefall")
    places = [] if found is None else [*(found.submodule_search_locations or [])]
    return Path(places[0]).parent if places else None


def _check_numbers(
    device: str, limit_mib: float | None, tolerance: float, max_minutes: float
) -> None:
    if device == "cpu" and limit_mib is None:
        raise UsageError(
            "--limit-mib: got none on a CPU (--device cpu, or torch sees no GPU), where nothing "
            "but the whole machine is the limit; give what training may take, in MiB, before "
            "TRAIN_PY: panda-icefall fit --limit-mib 600 TRAIN_PY ..."
        )
    if device == "cpu" and not sys.platform.startswith("linux"):
        raise UsageError("--device: got cpu, whose memory can be limited on Linux only")
    for name, value in (("--limit-mib", limit_mib), ("--max-minutes", max_minutes)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name}: got {value:g}, expected a number above 0")
    if not 0 < tolerance < 1:
        raise UsageError(f"--tolerance: got {tolerance:g}, expected a number between 0 and 1")


def _own_words(train_py: Path, arguments: list[str]) -> tuple[list[str], int, tuple[str, ...]]:
    """The words without those that a trial sets; the first duration; the arms."""
    options, _ = split_panda_arguments(arguments)
    for flag in options.given("run", "check"):
        if flag in _REFUSED:
            raise UsageError(f"{flag}: got it in a fit, whose trials set their own; leave it out")
    words, given = _taken_out(_SET_BY_TRIALS, arguments)
    for flag, first in _FROM_THE_START.items():
        value = given.get(flag)
        if value not in (None, first):
            raise UsageError(
                f"{flag}: got {value}, expected training from its start, as a trial's folder has "
                "no checkpoints; leave it out"
            )
    arms = (ARMS[options.use_panda],) if "--use-panda" in given else ARMS
    return words, _start(train_py, given.get("--max-duration")), arms


def _taken_out(
    flags: Sequence[str], arguments: Sequence[str]
) -> tuple[list[str], dict[str, str | None]]:
    """The words without these flags and their values, and the last value of each."""
    kept: list[str] = []
    values: dict[str, str | None] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in flags:
            values[name] = value if equals else next(words, None)
        else:
            kept.append(word)
    return kept, values


def _start(train_py: Path, given: str | None) -> int:
    """The first ``--max-duration``: the given one, the recipe's default, or a common one."""
    if given is None:
        try:
            found = recipe_defaults(train_py).get("max-duration")
        except UsageError:  # no pruned loss: the planner has nothing to say, a trial has
            found = None
        return _START if found is None else max(1, round(float(found.value)))
    try:
        start = float(given)
    except ValueError:
        start = math.nan
    if not (start >= 1 and math.isfinite(start)):
        raise UsageError(f"--max-duration: got {given!r}, expected seconds, at least 1")
    return round(start)
