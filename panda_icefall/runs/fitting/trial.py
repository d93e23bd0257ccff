"""One trial: a recipe's worst batches at one ``--max-duration``, in a process of its own.

``python -m panda_icefall.runs.fitting.trial REQUEST`` is that process; REQUEST is JSON. A recipe
that runs out of memory, or is killed for it, ends its own process only.
"""

import dataclasses
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import panda_icefall
from panda_icefall.memory_limit import tells_of_no_memory
from panda_icefall.normalizer.retry import RETRYING
from panda_icefall.routing import PandaError
from panda_icefall.runs.bounded.arms import read_arm
from panda_icefall.runs.bounded.plan import for_measuring
from panda_icefall.runs.bounded.stage import Deadline, StageOutcome, run_stage
from panda_icefall.runs.data.check import icefall_environment
from panda_icefall.runs.errors import exit_with
from panda_icefall.runs.fitting.request import FitRequest
from panda_icefall.runs.hooks.worst_batches import BatchSize, Scan
from panda_icefall.runs.launch import run_recipe
from panda_icefall.runs.options import WorstOnly
from panda_icefall.runs.panda_arguments import split_panda_arguments
from panda_icefall.runs.records import Bytes, Record, validated

__all__ = ["FAILED", "FITS", "LIMITS", "NO_BATCH", "OUT_OF_MEMORY", "Trial", "run_trial"]

_TAIL = 16_000  # characters of the output in which an allocator's refusal is looked for
FITS, OUT_OF_MEMORY, KILLED, NO_BATCH, FAILED = (
    "fits",
    "out of memory",
    "killed",
    "no batch",
    "failed",
)
LIMITS = (OUT_OF_MEMORY, KILLED)  # what says that a batch was too large


class Trial(Record):
    """What one trial came to.

    Attributes:
      arm: ``dense`` or ``routed``.
      max_duration: ``--max-duration``, seconds.
      outcome: ``killed``: by SIGKILL, as the system does where it runs out of memory; ``no batch``:
        the data were too few to make one; ``failed``: for another reason than memory.
      detail: The last words of one that did not fit.
      seconds: Wall time.
      exit_status: Of its process; negative: a signal's number.
      peak_bytes: The largest peak of its steps; of those that were finished.
      base_bytes: Memory before the first step.
      available_bytes: What its steps could have had at most.
      memory_kind: What these bytes are.
      worst: The batches it ran, the one with most seconds after padding first.
      log: Its output, relative to the folder of the search.
    """

    arm: str
    max_duration: int
    outcome: Literal["fits", "out of memory", "killed", "no batch", "failed"]
    detail: str = ""
    seconds: float
    exit_status: int
    peak_bytes: Bytes | None = None
    base_bytes: Bytes | None = None
    available_bytes: int | None = None
    memory_kind: str = "memory"
    worst: list[BatchSize] = Field(default_factory=list)
    log: str

    @property
    def padded_seconds(self) -> float:
        """Of the largest of its batches."""
        return self.worst[0].padded_seconds if self.worst else 0.0

    @property
    def room(self) -> float | None:
        """How many times its memory above what is always there may be used; None: unknown."""
        peak, base, available = self.peak_bytes, self.base_bytes, self.available_bytes
        if peak is None or base is None or available is None or peak <= base:
            return None
        return max(0.0, (available - base) / (peak - base))


def run_trial(
    request: FitRequest,
    arm: str,
    max_duration: int,
    deadline: Deadline,
    on_poll: Callable[[], Any],
) -> Trial:
    """Run one trial to its end, however it ends.

    Args:
      request: The search it is of.
      arm: ``dense`` or ``routed``.
      max_duration: Seconds.
      deadline: When the search has to end.
      on_poll: Called several times a second while it runs.

    Raises:
      Interrupted: A signal or the deadline came first.
    """
    folder = request.out / "trials" / f"{arm}-{max_duration}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log, memory_log, report = (folder / n for n in ("output.log", "memory.jsonl", "scan.json"))
    exp_dir = folder / "exp"
    given = ["--max-duration", str(max_duration), "--exp-dir", str(exp_dir)]
    worst_only = WorstOnly(str(report), request.scan_batches, request.limit_bytes)
    asked = {
        "train_py": str(request.train_py),
        "words": [*request.words, *given, "--use-panda", str(int(arm == "routed"))],
        "memory_log": str(memory_log),
        "worst_only": dataclasses.asdict(worst_only),
    }
    command = [sys.executable, "-m", __name__, json.dumps(asked)]
    project = Path(panda_icefall.__file__).parents[1]
    environment = for_measuring(icefall_environment(project), request.device)
    try:
        ended = run_stage(command, Path.cwd(), environment, log, deadline, on_poll)
    finally:
        shutil.rmtree(exp_dir, ignore_errors=True)  # its checkpoints, where it saved any
    scan = None
    if report.exists():
        scan = validated(Scan, json.loads(report.read_text(encoding="utf-8")), report)
    measured, outcome = read_arm(memory_log), _outcome(ended, scan, log)
    return Trial(
        arm=arm,
        max_duration=max_duration,
        outcome=outcome,
        detail="" if outcome == FITS else _last_words(ended),
        seconds=ended.seconds,
        exit_status=ended.exit_status,
        peak_bytes=measured.peak_bytes,
        base_bytes=measured.base_bytes,
        available_bytes=None if scan is None else scan.available_bytes,
        memory_kind=measured.memory_kind,
        worst=[] if scan is None else scan.worst,
        log=str(log.relative_to(request.out)),
    )


def _outcome(ended: StageOutcome, scan: Scan | None, log: Path) -> Any:
    if ended.exit_status == 0:
        return FITS
    if scan is not None and not scan.worst:
        return NO_BATCH
    text = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
    # A tile that was made once more is no end.
    if tells_of_no_memory("\n".join(s for s in text.splitlines() if RETRYING not in s)):
        return OUT_OF_MEMORY
    # Of a spawned rank torch tells the signal in words.
    is_killed = signal.SIGKILL.name in f"{ended.by_signal} {text}"
    return KILLED if is_killed else FAILED


def _last_words(ended: StageOutcome) -> str:
    """What ended it: the last exception, else a parser's error, else the last line."""
    lines = [line.rstrip() for line in ended.tail.splitlines() if line.strip()]
    errors = [line for line in lines if ": error: " in line]
    for at, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            errors += [text for text in lines[at + 1 :] if not text.startswith(" ")][:1]
    words = (errors or lines or ["it printed nothing"])[-1].strip()
    return f"status {ended.exit_status}{ended.by_signal}: {words}"


def _main(request: str) -> None:
    """In a process of its own: run the recipe on its worst batches."""
    given = json.loads(request)
    try:
        options, words = split_panda_arguments(given["words"])
        options = dataclasses.replace(
            options,
            memory_log=Path(given["memory_log"]),
            worst_only=WorstOnly(**given["worst_only"]),
        )
        sys.exit(run_recipe(given["train_py"], words, options))
    except PandaError as error:
        exit_with(error)


if __name__ == "__main__":
    _main(sys.argv[1])
