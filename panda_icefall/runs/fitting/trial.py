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
from typing import Any

import panda_icefall
from panda_icefall.memory_limit import tells_of_no_memory
from panda_icefall.normalizer.retry import RETRYING
from panda_icefall.routing import PandaError
from panda_icefall.runs.bounded.arms import read_arm
from panda_icefall.runs.bounded.plan import for_measuring
from panda_icefall.runs.bounded.stage import Deadline, StageOutcome, run_stage
from panda_icefall.runs.data.check import icefall_environment
from panda_icefall.runs.errors import exit_with
from panda_icefall.runs.fitting.folder import trial_folder
from panda_icefall.runs.fitting.record import (
    FAILED,
    FITS,
    KILLED,
    NO_BATCH,
    OUT_OF_MEMORY,
    Trial,
)
from panda_icefall.runs.fitting.request import FitRequest
from panda_icefall.runs.hooks.worst_batches import Scan
from panda_icefall.runs.launch import run_recipe
from panda_icefall.runs.options import WorstOnly
from panda_icefall.runs.panda_arguments import split_panda_arguments
from panda_icefall.runs.records import validated

__all__ = ["run_trial"]

_TAIL = 16_000  # characters of the output in which an allocator's refusal is looked for


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
    folder = trial_folder(request.out, arm, max_duration)
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
        tail=ended.tail if outcome == FAILED else "",
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
