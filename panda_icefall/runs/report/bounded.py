"""The report of a bounded run: ``report.json``, ``report.md``, ``report.html`` and PNG figures."""

from collections.abc import Collection
from pathlib import Path

from panda_icefall.runs.atomic_file import replace_file, replace_json
from panda_icefall.runs.report import sections
from panda_icefall.runs.report.figures import FIGURE_FILES, draw_figures
from panda_icefall.runs.report.first_screen import first_screen, state
from panda_icefall.runs.report.markdown import picture, plain
from panda_icefall.runs.report.page import as_page
from panda_icefall.runs.run_record import RunRecord

__all__ = ["write_report"]

_LATER = "Figures are drawn when the run ends; the numbers so far are all here."
_CAPTIONS = {
    "loss.png": (
        "Training loss per frame of every step; where the curves coincide, the wide grey one lies "
        "under the narrow orange one. Below: how far the other runs are from the dense one, "
        "relative to its loss, on a logarithmic scale; steps without a difference at the bottom."
    ),
    "memory.png": "Peak memory of every training step in MiB; the vertical axis starts at zero.",
    "phases.png": (
        "Peak memory and time within each phase of a training step: medians over the steps that "
        "both runs have, the first left out where there are more."
    ),
    "contract.png": (
        "Relative distance of the routed from the dense computation on the same batch, by quantity "
        "and batch: first loss, log-probs and log_z, below the line gradients (rel-L2) by "
        "parameter group. Colours: distance over the row's bound, which is at the right; "
        "noise: the dense gradient is rounding noise itself, so it is judged in absolute terms."
    ),
}

_KIND = "PANDA bounded run: dense against routed training"


def write_report(record: RunRecord, folder: Path, *, with_figures: bool = True) -> Path:
    """Write the report of what a bounded run has found so far, in place of an earlier one.

    ``report.json`` holds the record itself, NaN and infinities as text; a record that is read from
    it gives the same report. Figures whose numbers are not there are left out, and an earlier one
    of that name is removed. Every file is replaced whole, so that no reader sees half of one.

    Args:
      record: What the run has found; young runs have little of it.
      folder: Where the files go; made where it is missing.
      with_figures: Draw the figures, which takes a second or two; else the report says that they
        are still to come.

    Returns:
      The path of ``report.html``, which needs no other file.

    Raises:
      TypeError: The record holds something that JSON cannot carry.
      OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / "report.json", record.model_dump(exclude_unset=True))
    figures, without_figures = _figures(record) if with_figures else ({}, _LATER)
    for name in FIGURE_FILES:
        if name in figures:
            replace_file(folder / name, figures[name])
        else:
            (folder / name).unlink(missing_ok=True)
    label, tone, sentence = state(record)
    blocks = first_screen(record, label, sentence)
    blocks += _sections(record, figures, without_figures)
    markdown = "\n\n".join(blocks) + "\n"
    replace_file(folder / "report.md", markdown.encode("utf-8"))
    path = folder / "report.html"
    page = as_page(markdown, f"{label}: {record.title or 'untitled run'}", _KIND, tone, figures)
    replace_file(path, page.encode("utf-8"))
    return path


def _figures(record: RunRecord) -> tuple[dict[str, bytes], str | None]:
    """The figures, or why there are none."""
    try:
        return draw_figures(record), None
    except ImportError as error:
        return {}, (
            f"No figures: matplotlib cannot be loaded ({error}). Install it with "
            "pip install 'panda-icefall[plots]'; the numbers are all here and in report.json."
        )


def _sections(
    record: RunRecord, figures: Collection[str], without_figures: str | None
) -> list[str]:
    """The blocks below the first screen, each section under its heading."""

    def pictures(*names: str) -> list[str]:
        return [picture(name, _CAPTIONS[name]) for name in names if name in figures]

    missing = [
        f"The {name} run: {_why_missing(record, name)}."
        for name in ("dense", "routed")
        if name not in record.trained
    ]
    absent = [" ".join(missing)] if missing else []
    parts = {
        "Figures": [] if without_figures is None else [plain(without_figures)],
        "Training": [*absent, *pictures("loss.png"), *sections.training(record)],
        "Memory and time": [
            *absent,
            *pictures("memory.png", "phases.png"),
            *sections.memory(record),
        ],
        "Contract": [*pictures("contract.png"), *sections.contract(record)],
        "Final parameters": sections.final_parameters(record),
        "Stop and resume": sections.resume(record),
        "What was routed": sections.routing(record),
        "Stages": sections.stages(record),
        "Configuration": sections.configuration(record) if record.config else [],
    }
    return [
        block for heading, blocks in parts.items() if blocks for block in (f"## {heading}", *blocks)
    ]


def _why_missing(record: RunRecord, arm: str) -> str:
    """Why ``arm`` has no step to show, from the state of its stage."""
    for stage in record.stages:
        if stage.name == arm:
            return f"no step was measured (its stage: {stage.state})"
    return record.absence
