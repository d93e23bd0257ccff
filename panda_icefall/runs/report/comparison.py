"""The report of any number of runs beside each other: Markdown, HTML and PNG figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panda_icefall.runs.atomic_file import replace_file, replace_json
from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.records import Arm, phases_of
from panda_icefall.runs.report import units
from panda_icefall.runs.report.markdown import picture, plain, table
from panda_icefall.runs.report.page import as_page

__all__ = ["ComparedRun", "as_json", "rows_of", "write_comparison"]

_KIND = "PANDA: training runs compared"
_FIGURES = ("loss.png", "memory.png", "phases.png")
_FIGURES_OF_A_RUN = (
    "run",
    "losses",
    "steps",
    "last loss per frame",
    "peak memory",
    "above memory at start",
    "median time per step",
    "memory / first run",
    "time / first run",
)


@dataclass(frozen=True)
class ComparedRun:
    """One run, as far as its files tell.

    Attributes:
      name: What it is called here.
      log: Its memory log; None: it was only checked.
      arm: Its steps.
      header: The first row of the log: when it started, its command, its versions.
      contracts: Its contract check by rank; empty where it had none.
      contract_path: The check's report, that of rank 0.
    """

    name: str
    log: Path | None
    arm: Arm
    header: Mapping[str, Any] = field(default_factory=dict)
    contracts: Sequence[ContractRecord] = ()
    contract_path: Path | None = None

    @property
    def losses(self) -> str:
        """Whether its losses were routed."""
        if self.log is None:
            return "check only"
        if self.arm.options is None:
            return "not recorded"
        return "routed" if self.arm.options.get("use_panda") else "dense"


def write_comparison(runs: Sequence[ComparedRun], folder: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``report.json`` and figures.

    Args:
      runs: At least one; the first that has trained is the one that ratios are by.
      folder: Where the files go; made where it is missing.

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
    replace_json(folder / "report.json", as_json(runs))
    title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    blocks = [f"# {plain(title)}", f"**{len(runs)} run(s)**: {plain(_sentence(runs))}"]
    named, *figures_of_runs = rows_of(runs)
    blocks.append(table(named, figures_of_runs, _caption(runs)))
    blocks.append("\n".join(f"- {run.name}: {plain(_facts(run))}" for run in runs))
    captions = {
        "loss.png": "Training loss per frame of every step; below, its distance from the first.",
        "memory.png": "Peak memory of every training step in MiB, from zero.",
        "phases.png": "Peak memory and time within each phase of a step: medians over the steps.",
    }
    if without:
        blocks += ["## Figures", plain(without)]
    blocks += [picture(name, captions[name]) for name in _FIGURES if name in figures]
    blocks += ["## Memory and time by phase", *_phases(runs)]
    blocks += ["## Contract", *_contracts(runs)]
    blocks += ["## Not measured", "\n".join(f"- {plain(line)}" for line in _gaps(runs))]
    markdown = "\n\n".join(blocks) + "\n"
    replace_file(folder / "report.md", markdown.encode("utf-8"))
    path = folder / "report.html"
    replace_file(path, as_page(markdown, title, _KIND, "open", figures).encode("utf-8"))
    return path


def rows_of(runs: Sequence[ComparedRun]) -> list[tuple[str, ...]]:
    """A column for each run: its name, its figures, and peak and time over those of the first.

    Two or three of them fit any terminal, and a phone.
    """
    first = _reference(runs).arm
    columns: list[tuple[str, ...]] = [_FIGURES_OF_A_RUN]
    for run in runs:
        arm = run.arm
        last = arm.steps[-1].loss if arm.steps else None
        columns.append(
            (
                run.name,
                run.losses,
                units.count(len(arm.steps)),
                units.loss(last),
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


def _caption(runs: Sequence[ComparedRun]) -> str:
    kinds = sorted({run.arm.memory_kind for run in runs if run.arm.steps})
    counts = {len(run.arm.steps) for run in runs if run.log is not None}
    unequal = " The runs have different numbers of steps: peaks are over all of each." * (
        len(counts) > 1
    )
    return f"Memory: {' and '.join(kinds) or 'none'}. Median time: without the first step.{unequal}"


def _facts(run: ComparedRun) -> str:
    versions = run.header.get("versions") or {}
    known = [f"{name} {value}" for name, value in versions.items() if value not in (None, "")]
    parts = [
        str(run.contract_path if run.log is None else run.log),
        str(run.header.get("time") or "").replace("T", " "),
        ", ".join(known),
    ]
    return "; ".join(part for part in parts if part)


def _phases(runs: Sequence[ComparedRun]) -> list[str]:
    phases = phases_of(run.arm for run in runs)
    if not phases:
        return ["No run measured the phases of its steps."]
    columns = ("phase", *(f"{what}, {run.name}" for what in ("peak", "time") for run in runs))
    rows = [
        (
            phase.replace("_", " "),
            *(units.mib(run.arm.phase_peak_bytes(phase)) for run in runs),
            *(units.seconds(run.arm.phase_seconds(phase)) for run in runs),
        )
        for phase in phases
    ]
    return [table(columns, rows, "Medians over the steps, without the first.")]


def _contracts(runs: Sequence[ComparedRun]) -> list[str]:
    """What each contract check found, once where several runs share it."""
    names: dict[Path | None, list[str]] = {}
    for run in runs:
        names.setdefault(run.contract_path, []).append(run.name)
    found = {run.contract_path: run.contracts for run in runs}
    return [
        plain(f"{', '.join(names[path])}: {_contract(contracts)}")
        for path, contracts in found.items()
    ]


def _contract(ranks: Sequence[ContractRecord]) -> str:
    if not ranks:
        return "no contract check was found."
    violations = [text for record in ranks for text in record.violations]
    if violations:
        return f"VIOLATED: {'; '.join(violations)}"
    verdict = "holds" if all(record.has_passed for record in ranks) else "is not complete"
    text = f"the contract {verdict} over {len(ranks[0].batches)} batch(es)."
    return f"{text} {ranks[0].compared_with}".rstrip()


def _gaps(runs: Sequence[ComparedRun]) -> list[str]:
    """What a reader might look for and will not find."""
    lines = ["validation loss and word error rate: a memory log has none of them"]
    for run in runs:
        if run.log is None:
            lines.append(f"{run.name}: everything but the contract: it was not trained")
            continue
        arm = run.arm
        missing = [
            name
            for name, is_there in (
                ("steps", bool(arm.steps)),
                ("losses", any(step.loss is not None for step in arm.steps)),
                ("peak memory", arm.peak_bytes is not None),
                ("memory before the first step", arm.base_bytes is not None),
                ("phases", bool(phases_of([arm]))),
                ("options and versions", bool(run.header)),
            )
            if not is_there
        ]
        if missing:
            lines.append(f"{run.name}: {', '.join(missing)}")
    return lines
