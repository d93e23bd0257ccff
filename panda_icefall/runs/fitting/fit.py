"""The search from its request to its table: trial after trial, each written down when it ends."""

import contextlib
import datetime
import functools
import time
from collections.abc import Callable, Sequence

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
from panda_icefall.runs.fitting.folder import keep_trials_of
from panda_icefall.runs.fitting.record import (
    FAILED,
    FITS,
    LIMITS,
    NO_BATCH,
    REPORT,
    ArmFit,
    FitRecord,
    Trial,
    read_record,
)
from panda_icefall.runs.fitting.request import FitRequest
from panda_icefall.runs.fitting.search import Search
from panda_icefall.runs.fitting.trial import run_trial
from panda_icefall.runs.report import units
from panda_icefall.runs.report.console import open_console
from panda_icefall.runs.report.progress import shown_progress

__all__ = ["run_fit"]


class _Failed(Exception):  # noqa: N818 - reported, not raised at the user
    """A trial ended for another reason than memory."""


def run_fit(request: FitRequest) -> tuple[FitRecord, int]:
    """Search for the largest ``--max-duration`` of each arm.

    ``fit.json`` is written anew after every trial. A search in the folder of an earlier one, whose
    arguments were the same, begins within the bounds that were found there.

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
        self._deadline = Deadline.after(request.max_minutes, "--max-minutes")
        self._made = 0  # trials of this search
        self.record = FitRecord(
            inputs=request.inputs,
            started=datetime.datetime.now().isoformat(timespec="seconds"),
            trials=_earlier_trials(request),
        )
        keep_trials_of(request.out, self.record.trials)
        # Of all arms before any is tried: the bounds of a later one outlive an interruption.
        self._searches = {arm: self._begun(arm) for arm in request.arms}

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
            except UsageError as refusal:
                record.reason = str(refusal)
                raise
            finally:
                with held_signals():
                    if record.state == "running":
                        record.state = "partial"
                        record.reason = record.reason or "it ended early"
                    self._write()
        return record, status

    def _search(self, arm: str, later: int, show: Callable[..., None]) -> None:
        """Search for one arm, after which there are at most ``later`` trials of others."""
        request, search = self._request, self._searches[arm]
        if known := self._trials_of(arm):
            count = "1 trial" if len(known) == 1 else f"{len(known)} trials"
            self._print(f"{arm}: {_bounds(search)} ({count} of an earlier fit)")
        while (seconds := search.next) is not None:
            most = self._made + request.most_trials - search.trials + later
            text = f"{arm}, --max-duration {seconds}"
            on_poll = functools.partial(show, self._made, text, most)
            on_poll()
            trial = run_trial(request, arm, seconds, self._deadline, on_poll)
            self._made += 1
            self.record.trials.append(trial)
            if trial.outcome == FITS:
                search.note_fit(seconds, trial.padded_seconds, trial.room)
            elif trial.outcome in (*LIMITS, NO_BATCH):
                search.note_too_long(seconds, lacks_data=trial.outcome == NO_BATCH)
            self._note(arm, search)
            self._write()
            self._print(_said(trial))
            if trial.outcome == FAILED:
                text = f"{trial.name}: {trial.detail}; its output: {request.out / trial.log}"
                if trial.exit_status == EXIT_USAGE and not self.record.measured:
                    raise UsageError(f"TRAIN_PY: {text}; put it right and start the fit again")
                raise _Failed(text)

    def _trials_of(self, arm: str) -> list[Trial]:
        return [trial for trial in self.record.trials if trial.arm == arm]

    def _begun(self, arm: str) -> Search:
        """A search within the bounds that an earlier one has found."""
        request = self._request
        search = Search(request.start, request.longest, request.most_trials, request.tolerance)
        if known := self._trials_of(arm):
            _take_over(search, known)
            self._note(arm, search)
        return search

    def _note(self, arm: str, search: Search) -> None:
        self.record.arms[arm] = ArmFit(
            fits=search.fits,
            too_long=search.too_long,
            lacks_data=search.lacks_data,
            is_settled=search.is_settled,
        )

    def _print(self, line: str, style: str | None = None) -> None:
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def _write(self) -> None:
        self.record.seconds = time.monotonic() - self._began
        try:
            replace_json(self._request.out / REPORT, self.record.model_dump())
        except OSError as error:
            self._print(f"{REPORT} could not be written: {error}", style="red")


def _said(trial: Trial) -> str:
    """One line for a trial that has ended."""
    line = f"{trial.name}: {trial.outcome}"
    if trial.outcome == FITS:
        line += f", peak {units.mib(trial.peak_bytes)} ({trial.memory_kind})"
    line += f", {units.duration(trial.seconds)}"
    return f"{line}: {trial.detail}" if trial.outcome == FAILED else line


def _bounds(search: Search) -> str:
    fits = f"{search.fits} fits" if search.fits else "none is known to fit"
    return fits if search.too_long is None else f"{fits}, {search.too_long} does not"


def _earlier_trials(request: FitRequest) -> list[Trial]:
    """What an earlier search in the folder has measured; ``check_fit`` saw that it is the same."""
    return read_record(request.out).measured if (request.out / REPORT).exists() else []


def _take_over(search: Search, known: Sequence[Trial]) -> None:
    """Tell a search what an earlier one has measured: the bounds, and the memory left over."""
    ascending = sorted(known, key=lambda trial: trial.max_duration)
    too_long = next((trial for trial in ascending if trial.outcome != FITS), None)
    for trial in ascending:
        if trial is too_long:
            search.note_too_long(trial.max_duration, lacks_data=trial.outcome == NO_BATCH)
            break
        search.note_fit(trial.max_duration, trial.padded_seconds, trial.room)
    search.trials = 0
