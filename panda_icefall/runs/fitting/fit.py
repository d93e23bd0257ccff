"""The search from its request to its table: trial after trial, each written down when it ends."""

import contextlib
import datetime
import functools
import json
import time
from collections.abc import Callable
from typing import Any

from pydantic import Field
from rich.console import Console

from panda_icefall.runs.atomic_file import replace_json
from panda_icefall.runs.bounded.continuation import only_run_in
from panda_icefall.runs.bounded.stage import (
    Deadline,
    Interrupted,
    forwarded_signals,
    held_signals,
)
from panda_icefall.runs.errors import EXIT_USAGE, UsageError
from panda_icefall.runs.fitting.request import REPORT, FitRequest
from panda_icefall.runs.fitting.search import Search
from panda_icefall.runs.fitting.trial import (
    FAILED,
    FITS,
    LIMITS,
    NO_BATCH,
    OUT_OF_MEMORY,
    Trial,
    run_trial,
)
from panda_icefall.runs.records import Record, validated
from panda_icefall.runs.report import units
from panda_icefall.runs.report.console import open_console
from panda_icefall.runs.report.progress import shown_progress

__all__ = ["ArmFit", "FitRecord", "run_fit"]

_KEPT = (FITS, OUT_OF_MEMORY, NO_BATCH)  # of an earlier search; others are tried again


class ArmFit(Record):
    """The result of one arm; durations in seconds.

    Attributes:
      fits: The largest ``--max-duration`` that has fitted; 0: none.
      too_long: The smallest that has not; None: none was tried.
      lacks_data: The data make no larger batches: memory was not the bound.
      is_settled: The search ended by itself: not by its number of trials, nor by an interruption.
    """

    fits: int
    too_long: int | None
    lacks_data: bool
    is_settled: bool


class FitRecord(Record):
    """``fit.json``: everything that a search has found so far.

    Attributes:
      state: ``running``, ``complete`` or ``partial``.
      reason: Why it is partial.
      inputs: All that a trial depends on, by name.
      arms: The result of each arm.
      trials: In their order; those that an earlier search in the folder has made are among them.
    """

    state: str = "running"
    reason: str | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)
    started: str | None = None
    seconds: float | None = None
    arms: dict[str, ArmFit] = Field(default_factory=dict)
    trials: list[Trial] = Field(default_factory=list)

    def best(self, arm: str) -> Trial | None:
        """The largest trial that has fitted."""
        fitting = [t for t in self.trials if t.arm == arm and t.outcome == FITS]
        return max(fitting, key=lambda trial: trial.max_duration, default=None)


class _Failed(Exception):  # noqa: N818 - reported, not raised at the user
    """A trial ended for another reason than memory."""


def run_fit(request: FitRequest) -> tuple[FitRecord, int]:
    """Search for the largest ``--max-duration`` of each arm.

    ``fit.json`` is written anew after every trial: a search that is interrupted keeps what it has
    measured, and goes on from there where it is started again with the same arguments and folder.

    Args:
      request: From ``check_fit``.

    Returns:
      What was found; and the exit status: 0 where each arm has a ``--max-duration`` that fits, 1
      where one has none or the search ended early, 128 + N where signal N ended it.

    Raises:
      UsageError: The first trial ended with the recipe's refusal of its arguments, or another
        process writes the folder.
    """
    with only_run_in(request.out):
        return _Fit(request).run()


class _Fit:
    """One search in progress."""

    def __init__(self, request: FitRequest) -> None:
        self._request = request
        self._console: Console = open_console()
        self._began = time.monotonic()
        self._earlier = _earlier_trials(request)
        self._deadline = Deadline.after(request.max_minutes)
        now = datetime.datetime.now().isoformat(timespec="seconds")
        self.record = FitRecord(inputs=request.inputs, started=now)

    def run(self) -> tuple[FitRecord, int]:
        """Run it to its end; see :func:`run_fit`."""
        status = 1
        record, request = self.record, self._request
        with contextlib.suppress(Interrupted), forwarded_signals():
            try:
                self._write()
                with shown_progress(self._console, "fit", None) as show:
                    for number, arm in enumerate(request.arms, 1):
                        later = (len(request.arms) - number) * request.most_trials
                        self._search(arm, later, show)
                record.state = "complete"
                status = 0 if all(found.fits for found in record.arms.values()) else 1
            except Interrupted as stop:
                status, record.reason = stop.exit_status, str(stop)
            except _Failed as failure:
                record.reason = str(failure)
            finally:
                with held_signals():
                    if record.state == "running":
                        record.state = "partial"
                        record.reason = record.reason or "it ended early"
                    self._write()
        return record, status

    def _search(self, arm: str, later: int, show: Callable[..., None]) -> None:
        """Search for one arm, after which there are at most ``later`` trials of others."""
        request = self._request
        search = Search(request.start, request.longest, request.most_trials, request.tolerance)
        while (seconds := search.next) is not None:
            trial = self._earlier.get((arm, seconds))
            if trial is None:
                done = len(self.record.trials)
                most = done + request.most_trials - search.trials + later
                text = f"{arm}, --max-duration {seconds}"
                on_poll = functools.partial(show, done, text, most)
                on_poll()
                trial = run_trial(request, arm, seconds, self._deadline, on_poll)
            self.record.trials.append(trial)
            if trial.outcome == FITS:
                search.note_fit(seconds, trial.padded_seconds, trial.room)
            elif trial.outcome in (*LIMITS, NO_BATCH):
                search.note_too_long(seconds, lacks_data=trial.outcome == NO_BATCH)
            self.record.arms[arm] = ArmFit(
                fits=search.fits,
                too_long=search.too_long,
                lacks_data=search.lacks_data,
                is_settled=search.is_settled,
            )
            self._write()
            self._say(trial)
            if trial.outcome == FAILED:
                log = request.out / trial.log
                text = f"{arm} --max-duration {seconds}: {trial.detail}; its output: {log}"
                if trial.exit_status == EXIT_USAGE and len(self.record.trials) == 1:
                    raise UsageError(f"TRAIN_PY: {text}")
                raise _Failed(text)

    def _say(self, trial: Trial) -> None:
        line = f"{trial.arm} --max-duration {trial.max_duration}: {trial.outcome}"
        if trial.outcome == FITS:
            line += f", peak {units.mib(trial.peak_bytes)} ({trial.memory_kind})"
        line += f", {units.duration(trial.seconds)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _write(self) -> None:
        self.record.seconds = time.monotonic() - self._began
        made = {(trial.arm, trial.max_duration) for trial in self.record.trials}
        not_yet = [trial for key, trial in self._earlier.items() if key not in made]
        content = self.record.model_copy(update={"trials": [*self.record.trials, *not_yet]})
        try:
            replace_json(self._request.out / REPORT, content.model_dump())
        except OSError as error:
            line = f"{REPORT} could not be written: {error}"
            self._console.print(line, style="red", markup=False, soft_wrap=True)


def _earlier_trials(request: FitRequest) -> dict[tuple[str, int], Trial]:
    """What an earlier search in the folder has measured."""
    path = request.out / REPORT
    if not path.exists():
        return {}
    earlier = validated(FitRecord, json.loads(path.read_text(encoding="utf-8")), path)
    return {(t.arm, t.max_duration): t for t in earlier.trials if t.outcome in _KEPT}
