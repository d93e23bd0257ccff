"""The result of a search on a console: what fits, what to set, and how far to trust it."""

import shlex

from rich.console import Console
from rich.table import Column, Table

from panda_icefall.runs.fitting.record import REPORT, ArmFit, FitRecord, Trial
from panda_icefall.runs.fitting.request import FitRequest
from panda_icefall.runs.report import units

__all__ = ["print_fit"]


def print_fit(record: FitRecord, request: FitRequest, console: Console) -> None:
    """Print what was found so far; an interrupted search has a table as well."""
    arms = {
        arm: (found, record.best(arm))
        for arm, found in record.arms.items()
        if found.fits or found.too_long
    }
    if arms:
        limit = "" if request.limit_bytes is None else f" with {units.mib(request.limit_bytes)}"
        # On a CPU the limit is on what training adds, and the peak is of the whole process.
        above = " above what is held before training" if request.device == "cpu" else ""
        peak = "peak of the process in all" if above else "peak of its worst batches"
        table = Table(
            "",
            *(Column(arm, justify="right") for arm in arms),
            title=f"Largest --max-duration that fits{limit}{above}, on {request.device}",
        )
        table.add_row("seconds of audio", *(_fits(found) for found, _ in arms.values()))
        table.add_row("did not fit", *(_too_long(found) for found, _ in arms.values()))
        table.add_row(peak, *(_peak(best) for _, best in arms.values()))
        table.add_row("the largest of them", *(_shape(best) for _, best in arms.values()))
        counts = [sum(trial.arm == arm for trial in record.trials) for arm in arms]
        table.add_row("trials", *map(str, counts))
        console.print(table)
    for line in _lines(record, request):
        console.print(line, markup=False, soft_wrap=True, highlight=False)


def _fits(found: ArmFit) -> str:
    if not found.fits:
        return "none"
    return f"{'' if found.too_long and not found.lacks_data else '>= '}{found.fits:,}"


def _too_long(found: ArmFit) -> str:
    if found.too_long is None:
        return units.NOTHING
    return f"{found.too_long:,}{' (no batch)' if found.lacks_data else ''}"


def _peak(best: Trial | None) -> str:
    return units.NOTHING if best is None else units.mib(best.peak_bytes)


def _shape(best: Trial | None) -> str:
    if best is None or not best.worst:
        return units.NOTHING
    worst = best.worst[0]
    return f"{worst.cuts} x {worst.longest_seconds:.1f} s"


def _lines(record: FitRecord, request: FitRequest) -> list[str]:
    lines = []
    dense, routed = (record.arms.get(arm) for arm in ("dense", "routed"))
    if routed is not None and routed.fits:
        gain = ""
        if dense is not None and dense.fits:
            gain = f", {routed.fits / dense.fits:.1f} times the dense one"
        lines.append(f"set: --use-panda 1 --max-duration {routed.fits}{gain}")
    elif dense is not None and dense.fits:
        lines.append(f"set: --max-duration {dense.fits}")
    for arm, found in record.arms.items():
        if not found.fits and record.state == "complete":
            least = min((t for t in record.trials if t.arm == arm), key=lambda t: t.max_duration)
            tried = f"--max-duration {least.max_duration} fitted: {least.outcome}"
            lines.append(f"{arm}: not even {tried}, {least.detail}")
        elif found.lacks_data:
            lines.append(f"{arm}: the data make no larger batches; memory was not the bound")
        elif not found.is_settled and record.state == "complete":
            lines.append(f"{arm}: --max-trials came first; more of them find it more closely")
    if record.measured:
        lines.append(
            "Measured: forward, backward and optimizer step of the worst batches of the first "
            "epoch. Another epoch is shuffled otherwise, and a long run's allocator fragments: "
            "take 5 to 10 percent less."
        )
    if record.failed is not None:
        lines += _failure(record.failed, record, request)
    elif record.state != "complete":
        lines.append(f"PARTIAL: {record.reason}")
        lines.append(f"go on with it: the same command with --out {request.out}")
    lines.append(f"report: {request.out / REPORT}")
    return lines


def _failure(trial: Trial, record: FitRecord, request: FitRequest) -> list[str]:
    """What is wrong with a recipe that fails for another reason than memory, and what to do."""
    alone = request.out / "alone"
    words = [
        *("panda-icefall", "run", str(request.train_py), *request.words),
        *("--max-duration", str(trial.max_duration), "--exp-dir", str(alone)),
        *("--use-panda", str(int(trial.arm == "routed")), "--panda-max-batches", "2"),
    ]
    again = "Nothing was measured: then start the fit again"
    if record.measured:
        again = (
            f"Then start the fit again: with --out {request.out} what was measured is taken over, "
            "if neither the recipe nor its arguments changed; else it needs a new folder"
        )
    return [
        f"FAILED, and not for want of memory: {trial.name}: {trial.detail}",
        f"the last lines of its output, {request.out / trial.log}:",
        *(f"    {line}" for line in trial.tail.splitlines()),
        f"what to do: make it run alone: {shlex.join(words)}",
        f"{again}.",
    ]
