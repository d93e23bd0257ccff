"""The report of any number of runs beside each other: Markdown, HTML and PNG figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panda_icefall.runs.atomic_file import replace_file, replace_json
from panda_icefall.runs.report import units
from panda_icefall.runs.report.compared_run import (
    ComparedRun,
    commands_of,
    contracts_of,
    facts_of,
    gaps_of,
    other_arguments,
    phases_of_runs,
)
from panda_icefall.runs.report.first_screen import DENSE_AND_ROUTED
from panda_icefall.runs.report.markdown import alert, picture, plain, table
from panda_icefall.runs.report.page import as_page

__all__ = ["as_json", "rows_of", "write_comparison"]

_KIND = "PANDA: training runs compared"
_MOST_NAMED = 4  # in the title
_MOST_ARGUMENTS = 4  # of those in which a run differs from the first
_FIGURES = ("loss.png", "memory.png", "phases.png")
_FIGURES_OF_A_RUN = (
    "run",
    "losses",
    "steps",
    "last loss per frame",
    "largest loss difference",
    "peak memory",
    "above memory at start",
    "median time per step",
    "memory / first run",
    "time / first run",
)


def write_comparison(
    runs: Sequence[ComparedRun], folder: Path, problems: Sequence[str] = ()
) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and figures.

    Args:
      runs: At least one; the first that has trained is the one that ratios are by.
      folder: Where the files go; made where it is missing.
      problems: What could not be read, in words.

    Returns:
      The path of ``report.html``, which needs no other file.

    Raises:
      OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures, without = _draw(runs)
    for name in _FIGURES:
        if name in figures:
            replace_file(folder / name, figures[name])
        else:
            (folder / name).unlink(missing_ok=True)
    replace_json(folder / "report.json", {**as_json(runs), "not_read": list(problems)})
    names = [run.name for run in runs]
    title = (", " if len(names) > 2 else " and ").join(names)
    title = title if len(names) <= _MOST_NAMED else f"{len(names)} runs"
    counted = f"{len(runs)} run{'s' * (len(runs) > 1)}"
    blocks = [
        f"# {plain(title)}",
        f"**{counted}**: {plain(_sentence(runs))}",
        plain(DENSE_AND_ROUTED),
    ]
    named, *figures_of_runs = rows_of(runs)
    blocks.append(table(named, figures_of_runs, _caption(runs)))
    blocks += [alert(text) for text in _unequal(runs)]
    blocks.append("\n".join(f"- {run.name}: {plain(facts_of(run))}" for run in runs))
    if problems:
        blocks += ["## Not read", "\n".join(f"- {plain(text)}" for text in problems)]
    captions = {
        "loss.png": "Training loss per frame of every step; below, its distance from the first.",
        "memory.png": "Peak memory of every training step in MiB, from zero.",
        "phases.png": "Peak memory and time within each phase of a step: medians over the steps.",
    }
    if without:
        blocks += ["## Figures", plain(without)]
    blocks += [picture(name, captions[name]) for name in _FIGURES if name in figures]
    blocks += [
        "## Memory and time by phase",
        *phases_of_runs([run for run in runs if run.arm.steps]),
    ]
    blocks += ["## Contract", *contracts_of(runs)]
    blocks += ["## Commands", *commands_of(runs)]
    blocks += ["## Not measured", "\n".join(f"- {plain(line)}" for line in gaps_of(runs))]
    markdown = "\n\n".join(blocks) + "\n"
    replace_file(folder / "report.md", markdown.encode("utf-8"))
    path = folder / "report.html"
    replace_file(path, as_page(markdown, title, _KIND, "open", figures).encode("utf-8"))
    return path


def rows_of(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """A column for each run: its name, its figures, and how they stand to those of the first.

    Two or three of them fit any terminal, and a phone.
    """
    first = _reference(runs).arm
    columns: list[tuple[str, ...]] = [_FIGURES_OF_A_RUN]
    for run in runs:
        arm = run.arm
        last = arm.steps[-1].loss if arm.steps else None
        apart = {} if arm is first else arm.loss_differences(first)
        columns.append(
            (
                run.name,
                run.losses,
                units.count(len(arm.steps)),
                units.loss(last),
                units.distance(max(apart.values(), default=None))
                if arm.is_finite_where(first)
                else "not finite",
                units.mib(arm.peak_bytes),
                units.mib(arm.added_bytes),
                units.seconds(arm.median_seconds),
                units.ratio(arm.peak_bytes, first.peak_bytes),
                units.ratio(arm.median_seconds, first.median_seconds),
            )
        )
    return list(zip(*columns))


def as_json(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Everything that the report rests on."""
    return {
        "runs": [
            {
                "name": run.name,
                "log": None if run.log is None else str(run.log),
                "losses": run.losses,
                "header": dict(run.header),
                "arm": run.arm.model_dump(exclude_unset=True),
                "contract": run.contracts[0].model_dump(exclude_unset=True)
                if run.contracts
                else None,
            }
            for run in runs
        ]
    }


def _reference(runs: Sequence[ComparedRun]) -> ComparedRun:
    """The first run that has trained, if one has."""
    return next((run for run in runs if run.arm.steps), runs[0])


def _draw(runs: Sequence[ComparedRun]) -> tuple[dict[str, bytes], str]:
    """The figures, and why there are none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        return {}, (
            f"No figures: matplotlib cannot be loaded ({error}). Install it with "
            "pip install 'panda-icefall[plots]'."
        )
    from panda_icefall.runs.report.figures.loss import draw_losses
    from panda_icefall.runs.report.figures.memory import draw_peaks, draw_phase_bars
    from panda_icefall.runs.report.figures.style import as_png, styled

    arms = {run.name: run.arm for run in runs if run.arm.steps}
    measured = {name: arm for name, arm in arms.items() if arm.peak_bytes is not None}
    with styled():
        drawn = {
            "loss.png": draw_losses(arms, _reference(runs).name),
            "memory.png": draw_peaks(measured),
            "phases.png": draw_phase_bars(arms),
        }
        return {name: as_png(fig) for name, fig in drawn.items() if fig is not None}, ""


def _sentence(runs: Sequence[ComparedRun]) -> str:
    trained = [run for run in runs if run.arm.steps]
    if len(trained) < 2:
        return "there is nothing to compare." if not trained else f"only {trained[0].name} trained."
    lowest = min(trained, key=lambda run: run.arm.peak_bytes or float("inf"))
    fastest = min(trained, key=lambda run: run.arm.median_seconds or float("inf"))
    return (
        f"least memory: {lowest.name}, {units.mib(lowest.arm.peak_bytes)}; fastest: "
        f"{fastest.name}, {units.seconds(fastest.arm.median_seconds)} a step."
    )


def _unequal(runs: Sequence[ComparedRun]) -> list[str]:
    """Warnings of runs that were not given the same arguments; of many arguments only a few."""
    first = _reference(runs)
    names: dict[str, list[str]] = {}
    for run in runs:
        differing = other_arguments(run, first) if run.arm.steps else []
        more = len(differing) - _MOST_ARGUMENTS
        shown = ", ".join(differing[:_MOST_ARGUMENTS]) + (f", and {more} more" if more > 0 else "")
        if differing:
            names.setdefault(shown, []).append(run.name)
    return [
        f"{', '.join(those)}: other arguments than {first.name}, so that a ratio says little "
        f"(commands below): {text}"
        for text, those in names.items()
    ]


def _caption(runs: Sequence[ComparedRun]) -> str:
    kinds = sorted({run.arm.memory_kind for run in runs if run.arm.steps})
    counts = {len(run.arm.steps) for run in runs if run.log is not None}
    unequal = " The runs have different numbers of steps: peaks are over all of each." * (
        len(counts) > 1
    )
    return (
        f"Memory: {' and '.join(kinds) or 'none'}. Median time: without the first step. "
        f"Largest loss difference: from the first run that trained, relative to its loss.{unequal}"
    )
