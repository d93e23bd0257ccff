"""One command from a configuration to a report: check, train dense and routed, judge, write."""

import contextlib
import datetime
import time
from typing import Any

import torch
from rich.console import Console

from panda_icefall.runs.bounded.judge import Judge
from panda_icefall.runs.bounded.plan import Stage, child_environment, plan_stages
from panda_icefall.runs.bounded.report import write_report
from panda_icefall.runs.bounded.request import Request
from panda_icefall.runs.bounded.stage import (
    Deadline,
    Interrupted,
    StageFailed,
    forwarded_signals,
    run_stage,
)
from panda_icefall.runs.corpora import data_arguments
from panda_icefall.runs.doctor.checkout import examine_checkout
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.memory.log import run_versions
from panda_icefall.runs.run_report import open_console
from panda_icefall.runs.synth.data_folder import synth_data

__all__ = ["run_bounded"]

EXIT_NOT_HELD = 1


def run_bounded(request: Request) -> int:
    """Train a recipe dense and routed within bounds, compare, and report.

    The report is written anew after every stage, so that a run that ends early, however it ends,
    leaves one that says so.

    Args:
      request: From ``check_request``, which has found everything that can be wrong with it.

    Returns:
      0 where every verdict holds, 1 where one does not or a stage failed, 128 + N where signal N
      ended the run.

    Raises:
      UsageError: The synthetic data cannot be made.
    """
    return BoundedRun(request).run()


class BoundedRun:
    """One run in progress: its stages, and the report's content as far as it is known."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._config = request.config
        self._out = request.out
        self._console: Console = open_console()
        self._began = time.monotonic()
        self._deadline = Deadline.after(request.config.bounds.max_minutes)
        self._doing = "the start"
        self.content: dict[str, Any] = {
            "title": request.title,
            "state": "running",
            "reason": None,
            "passed": None,
            "verdicts": [],
            "command": request.command,
            "config": request.config.model_dump(),
            "config_path": str(request.config_path),
            "versions": {
                **run_versions(torch.device(request.device)),
                "icefall": examine_checkout(request.root).text,
            },
            "started": datetime.datetime.now().isoformat(timespec="seconds"),
            "stages": [],
            "arms": {},
        }
        self._judge = Judge(request.config, request.device, self.content)

    def run(self) -> int:
        """Run all stages, judge them and write the report; see :func:`run_bounded`."""
        status = EXIT_NOT_HELD
        try:
            with forwarded_signals():
                stages = plan_stages(
                    self._config, self._request.train_py, self._prepare_data(), self._out
                )
                for number, stage in enumerate(stages, 1):
                    self._run_stage(stage, f"{number}/{len(stages)}")
            self.content["state"] = "complete"
            self.content["passed"] = all(v["holds"] for v in self.content["verdicts"])
            status = 0 if self.content["passed"] else EXIT_NOT_HELD
        except Interrupted as stop:
            self._end_early(f"{stop} during {self._doing}")
            status = stop.exit_status
        except StageFailed as failure:
            self._end_early(str(failure))
        except BaseException as error:
            self._end_early(f"{type(error).__name__} during {self._doing}: {error}")
            raise
        finally:
            self._write()
            # Interrupted, it stays without figures.
            with contextlib.suppress(Interrupted), forwarded_signals():
                self._write(with_figures=True)
        self._print_verdicts()
        return status

    def _end_early(self, reason: str) -> None:
        self.content.update(state="partial", reason=reason, passed=False)

    def _prepare_data(self) -> list[str]:
        """Make synthetic data where they are asked for; the recipe's options that name its data."""
        wanted, given = self._config.data, self._request.data
        folder = self._out / "data" if given is None else given
        self.content["data"] = {
            "kind": "synthetic" if given is None else "given",
            "folder": str(folder),
            "corpus": wanted.corpus,
            "lang": wanted.lang,
            "classes": wanted.vocab_size,
        }
        if given is None:
            self._doing = "the synthetic data"
            self._console.print(f"synthetic {wanted.corpus} data in {folder}", soft_wrap=True)
            size = wanted.synthetic
            try:
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
        return data_arguments(wanted.corpus, wanted.lang, folder, wanted.vocab_size)

    def _run_stage(self, stage: Stage, place: str) -> None:
        self._doing = f"the {stage.name} run"
        row: dict[str, Any] = {
            "name": stage.name,
            "state": "running",
            "command": stage.shown_command,
            "log": str(stage.log.relative_to(self._out)),
        }
        self.content["stages"].append(row)
        self._write()
        self._console.print(f"{place} {stage.name}: {stage.purpose}")
        began = time.monotonic()
        try:
            outcome = run_stage(
                stage.command,
                self._request.corpus_folder,
                child_environment(self._request.root, self._request.device),
                stage.log,
                self._deadline,
            )
        except BaseException:
            row.update(state="interrupted", seconds=time.monotonic() - began)
            self._judge.read(stage)
            raise
        row.update(state="done", seconds=outcome.seconds, exit_status=outcome.exit_status)
        self._judge.read(stage)
        try:
            self._judge.judge(stage, outcome)
        except StageFailed:
            row["state"] = "failed"
            raise

    def _write(self, *, with_figures: bool = False) -> None:
        self.content["seconds"] = time.monotonic() - self._began
        try:
            write_report(self.content, self._out, with_figures=with_figures)
        except OSError as error:
            line = f"the report could not be written: {error}"
            self._console.print(line, style="red", markup=False, soft_wrap=True)

    def _print_verdicts(self) -> None:
        marks = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}
        for verdict in self.content["verdicts"]:
            line = f"{verdict['name']} {marks[verdict['holds']]}: {verdict['text']}"
            style = None if verdict["holds"] else "red"
            self._console.print(line, style=style, markup=False, soft_wrap=True)
        if self.content["state"] != "complete":
            line = f"PARTIAL: {self.content['reason']}"
            self._console.print(line, style="red", markup=False, soft_wrap=True)
        report = self._out / "report.html"
        self._console.print(f"report: {report}", markup=False, soft_wrap=True)
