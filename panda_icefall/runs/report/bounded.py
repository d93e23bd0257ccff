"""The report of a bounded run: ``report.json``, ``report.md``, ``report.html`` and PNG figures."""

import base64
from collections.abc import Collection, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from panda_icefall.runs.atomic_file import replace_file, replace_json
from panda_icefall.runs.report import sections
from panda_icefall.runs.report.figures import FIGURE_FILES, draw_figures
from panda_icefall.runs.report.first_screen import first_screen, state
from panda_icefall.runs.report.markdown import picture, plain
from panda_icefall.runs.run_record import RunRecord

__all__ = ["write_report"]

_LATER = "Figures are drawn when the run ends; the numbers so far are all here."
_CAPTIONS = {
    "loss.png": (
        "Training loss per frame of every step; where the curves coincide, the wide grey one lies "
        "under the narrow orange one. Below: how far the other runs are from the dense one, "
        "relative to its loss, on a logarithmic scale with the steps of no difference at its foot."
    ),
    "memory.png": "Peak memory of every training step in MiB; the vertical axis starts at zero.",
    "phases.png": (
        "Peak memory and time within each phase of a training step: medians over the steps that "
        "both runs have, the first left out where there are more."
    ),
    "contract.png": (
        "Relative distance of the routed from the dense computation on the same batch, by quantity "
        "and batch: first loss, log-probs and log_z, below the line gradients (rel-L2) by "
        "parameter group. Colours: distance over the row's bound, which stands at the right; "
        "noise: the dense gradient is rounding noise itself, so it is judged in absolute terms."
    ),
}

# What the report uses, and nothing else: no links, and no HTML from a recipe's own texts.
_BLOCKS = ("heading", "fence", "list", "table")
_WITHIN = ("emphasis", "escape", "entity", "image")
_TONES = {"\N{CHECK MARK}": "good", "\N{BALLOT X}": "bad", "\N{EN DASH}": "open"}
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
    page = _as_page(markdown, f"{label}: {record.title or 'untitled run'}", tone, figures)
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


def _as_page(markdown: str, title: str, tone: str, figures: Mapping[str, bytes]) -> str:
    """The Markdown as one HTML file that needs nothing else: styles and figures are in it.

    Args:
      markdown: The report.
      title: What the browser's window is called.
      tone: ``good``, ``bad``, ``open`` or ``partial``: how the state of the run is coloured.
      figures: PNG bytes by file name; pictures of other names are shown as text.
    """
    parser = MarkdownIt("zero").enable([*_BLOCKS, *_WITHIN])
    tokens = parser.parse(markdown)
    _style(tokens, tone, figures)
    body = parser.renderer.render(tokens, parser.options, {})
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<p class="kind">{_KIND}</p>
{body}</main>
</body>
</html>
"""


def _style(tokens: Sequence[Token], tone: str, figures: Mapping[str, bytes]) -> None:
    """Give the tokens the classes of the stylesheet, rows their headers, and images their bytes."""
    is_first = True  # the first paragraph says how the run stands
    row: list[Token] = []
    for index, token in enumerate(tokens):
        if token.type == "tr_open":
            row = []
        elif token.type in ("th_open", "td_open"):
            if token.attrs.pop("style", None):
                token.attrSet("class", "number")
            if token.type == "th_open":
                token.attrSet("scope", "col")
            elif not row:
                _name_row(token, tokens[index + 1].content)
            row.append(token)
        elif token.type == "td_close" and len(row) == 1:
            token.tag = "th"
        elif token.type == "paragraph_open":
            kind = f"state {tone}" if is_first else _kind_of(tokens[index + 1])
            is_first = False
            if kind:
                token.attrSet("class", kind)
        for child in token.children or ():
            if child.type == "image":
                _embed(child, figures)


def _name_row(cell: Token, text: str) -> None:
    """The first cell of a row names it; a verdict's has the colour of its sign."""
    cell.tag = "th"
    cell.attrSet("scope", "row")
    if text[:1] in _TONES:
        cell.attrSet("class", _TONES[text[:1]])


def _kind_of(inline: Token) -> str | None:
    """The class of a paragraph that is bold or slanted as a whole."""
    within = [child for child in inline.children or () if child.type != "text" or child.content]
    if not within:
        return None
    ends = within[0].type, within[-1].type
    kinds = {("strong_open", "strong_close"): "alert", ("em_open", "em_close"): "caption"}
    return kinds.get(ends)


def _embed(image: Token, figures: Mapping[str, bytes]) -> None:
    png = figures.get(str(image.attrs["src"]))
    if png is None:
        image.type, image.children = "text", None
        return
    image.attrs["src"] = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
