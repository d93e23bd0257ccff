"""One command from a configuration to a report: check, train dense and routed, judge, write."""

import contextlib
import datetime
import time

from rich.console import Console

from panda_icefall.runs.bounded.continuation import finished_row, move_aside, only_run_in
from panda_icefall.runs.bounded.judge import Judge
from panda_icefall.runs.bounded.plan import Stage, child_environment
from panda_icefall.runs.bounded.request import Request
from panda_icefall.runs.bounded.stage import (
    Deadline,
    Interrupted,
    StageFailed,
    StageOutcome,
    forwarded_signals,
    held_signals,
    run_stage,
)
from panda_icefall.runs.data.synthetic import synth_data
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.report.bounded import write_report
from panda_icefall.runs.report.console import open_console
from panda_icefall.runs.report.first_screen import all_verdicts, closing_lines
from panda_icefall.runs.report.progress import shown_progress, waiting
from panda_icefall.runs.run_record import DataRecord, RunRecord, StageRecord

__all__ = ["run_bounded"]

EXIT_NOT_HELD = 1


def run_bounded(request: Request) -> int:
    """Train a recipe dense and routed within bounds, compare, and report.

    The report is written anew after every stage, so that a run that ends early, however it ends,
    leaves one that says so; given its folder again, it is continued, and stages that were finished
    are not run again.

    Args:
      request: From ``check_request``, which has found everything that can be wrong with it.

    Returns:
      0 where every verdict holds, 1 where one does not or a stage failed, 128 + N where signal N
      ended the run.

    Raises:
      UsageError: The synthetic data cannot be made, or another process writes the folder.
    """
    with only_run_in(request.out):
        return BoundedRun(request).run()


class BoundedRun:
    """One run in progress: its stages, and its record as far as it is known."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._config = request.config
        self._out = request.out
        self._console: Console = open_console()
        self._began = time.monotonic()
        self._deadline = Deadline.after(request.config.bounds.max_minutes)
        self._doing = "the start"
        self._earlier = request.earlier
        data = request.config.data
        self.record = RunRecord(
            title=request.title,
            state="running",
            reason=None,
            passed=None,
            verdicts=[],
            command=request.command,
            continuation=request.continuation(),
            config=request.config.model_dump(),
            config_path=str(request.config_path),
            inputs=request.inputs,
            versions=request.inputs["versions"],
            data=DataRecord(
                kind="synthetic" if request.data is None else "given",
                folder=str(request.data_folder),
                corpus=data.corpus,
                lang=data.lang,
                classes=data.vocab_size,
            ),
            started=datetime.datetime.now().isoformat(timespec="seconds"),
            stages=[],
            arms={},
        )
        self._judge = Judge(request.config, request.device, self.record)

    def run(self) -> int:
        """Run all stages, judge them and write the report; see :func:`run_bounded`."""
        status = EXIT_NOT_HELD
        with contextlib.suppress(Interrupted), forwarded_signals():
            try:
                if self._earlier is None:  # else the stages that it names are taken over first
                    self._write()
                self._prepare_data()
                stages = self._request.stages
                for number, stage in enumerate(stages, 1):
                    self._finish_stage(stage, f"{number}/{len(stages)}")
                self.record.state = "complete"
                self.record.passed = all(verdict.holds for verdict in self.record.verdicts)
                status = 0 if self.record.passed else EXIT_NOT_HELD
            except Interrupted as stop:
                status = stop.exit_status
                self._end_early(f"{stop} during {self._doing}")
            except StageFailed as failure:
                self._end_early(str(failure))
            except BaseException as error:
                self._end_early(f"{type(error).__name__} during {self._doing}: {error}")
                raise
            finally:
                with held_signals():
                    if self.record.state == "running":  # a second signal came at once
                        self._end_early(f"interrupted during {self._doing}")
                    self._write()
                self._write(with_figures=True)  # interrupted, it stays without figures
        self._print_verdicts()
        return status

    def _end_early(self, reason: str) -> None:
        record = self.record
        record.state, record.reason, record.passed = "partial", reason, False
        if self._deadline.is_over:
            more = 2 * self._config.bounds.max_minutes
            record.continuation = self._request.continuation(more)
        if self._earlier is not None:  # not all of it was taken over yet
            names = [row.name for row in record.stages]
            record.stages += [row for row in self._earlier.stages if row.name not in names]
        self._judge.judge_partial()

    def _prepare_data(self) -> None:
        """Make synthetic data where they are asked for, and not there from an earlier attempt."""
        wanted, folder = self._config.data, self._request.data_folder
        if self._request.data is not None or (self._earlier is not None and folder.exists()):
            return
        self._doing = "the synthetic data"
        self._console.print(f"synthetic {wanted.corpus} data in {folder}", soft_wrap=True)
        size = wanted.synthetic
        try:
            with waiting(f"making {size.utterances} utterances and their vocabulary"):
                synth_data(
                    wanted.corpus,
                    folder,
                    self._request.root,
                    size.utterances,
                    wanted.lang,
                    wanted.vocab_size,
                    size.seed,
                )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise UsageError(str(error)) from error
        self._deadline.check()

    def _finish_stage(self, stage: Stage, place: str) -> None:
        """Run the stage, or take over what the earlier run has of it."""
        self._doing = f"the {stage.name} run"
        row = finished_row(self._earlier, stage)
        if row is not None:
            try:
                self._judge.read(stage)
                outcome = StageOutcome(row.exit_status or 0, row.seconds or 0.0, "")
                self._judge.judge(stage, outcome)
            except StageFailed:  # its files have gone
                row = None
        if row is None:
            self._earlier = None  # what follows builds on this stage
            move_aside(self._out / stage.name)
            self._run_stage(stage, place)
            return
        row.state = "taken over"
        self.record.stages.append(row)
        self._console.print(f"{place} {stage.name}: taken over from the earlier run")

    def _run_stage(self, stage: Stage, place: str) -> None:
        log = str(stage.log.relative_to(self._out))
        row = StageRecord(name=stage.name, state="running", command=stage.shown_command, log=log)
        self.record.stages.append(row)
        self._write()
        self._console.print(f"{place} {stage.name}: {stage.purpose}")
        began = time.monotonic()
        try:
            count = stage.count()
            text = f"{place} {stage.name}"
            with shown_progress(self._console, text, stage.steps or None) as show:
                outcome = run_stage(
                    stage.command,
                    self._request.corpus_folder,
                    child_environment(self._request.root, self._request.device),
                    stage.log,
                    self._deadline,
                    on_poll=lambda: show(count.read()),
                )
        except BaseException:
            row.state, row.seconds = "interrupted", time.monotonic() - began
            self._judge.read(stage)
            raise
        row.state, row.seconds, row.exit_status = "done", outcome.seconds, outcome.exit_status
        self._judge.read(stage)
        try:
            self._judge.judge(stage, outcome)
        except StageFailed:
            row.state = "failed"
            raise

    def _write(self, *, with_figures: bool = False) -> None:
        self.record.seconds = time.monotonic() - self._began
        try:
            write_report(self.record, self._out, with_figures=with_figures)
        except OSError as error:
            line = f"the report could not be written: {error}"
            self._console.print(line, style="red", markup=False, soft_wrap=True)

    def _print_verdicts(self) -> None:
        marks = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}
        for verdict in all_verdicts(self.record):
            line = f"{verdict.name} {marks[verdict.holds]}: {verdict.text}"
            style = None if verdict.holds else "red"
            self._console.print(line, style=style, markup=False, soft_wrap=True)
        if self.record.state != "complete":
            line = f"PARTIAL: {self.record.reason}"
            self._console.print(line, style="red", markup=False, soft_wrap=True)
            line = f"continue it: {self.record.continuation}"
            self._console.print(line, markup=False, soft_wrap=True, highlight=False)
        report = self._out / "report.html"
        self._console.print(f"report: {report}", markup=False, soft_wrap=True)
        for line in closing_lines(self.record):
            self._console.print(line, markup=False, soft_wrap=True, highlight=False)
