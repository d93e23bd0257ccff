"""The report as Markdown, readable as plain text too."""

import re

from panda_icefall.runs.bounded.report.blocks import Block, Code, Document, Picture, Table, Text

__all__ = ["as_markdown"]


def as_markdown(document: Document) -> str:
    """The whole document; figures are links to the files beside it."""
    parts = [f"# {_plain(document.title)}", f"**{document.label}**: {_plain(document.sentence)}"]
    if document.details is not None:
        parts.append(_code(document.details))
    verdicts = tuple((f"{v.sign} {v.answer}", v.name, v.text) for v in document.verdicts)
    if verdicts:
        parts.append(_table(Table(("verdict", "of", "figure and bound"), verdicts, "", True)))
    if document.headline is not None:
        parts.append(_table(document.headline))
    if document.facts:
        parts.append("\n".join(f"- {name}: {_plain(text)}" for name, text in document.facts))
    for words, command in document.commands:
        parts += [words, _code(command)]
    for section in document.sections:
        parts.append(f"## {section.heading}")
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"**{_plain(block.text)}**" if block.is_alert else _plain(block.text)
    if isinstance(block, Code):
        return _code(block.text)
    if isinstance(block, Picture):
        return f"![{block.file_name}]({block.file_name})\n\n*{_plain(block.caption)}*"
    return _table(block)


def _table(table: Table) -> str:
    rule = " --- |" if table.is_textual else " ---: |"
    lines = [
        _row(table.columns),
        "| --- |" + rule * (len(table.columns) - 1),
        *(_row(row) for row in table.rows),
    ]
    return "\n".join(lines) + (f"\n\n*{_plain(table.caption)}*" if table.caption else "")


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", r"\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """``text`` in one line, with what Markdown or HTML would take for markup made harmless."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*])", r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;"))


def _code(text: str) -> str:
    """A fence longer than any run of backticks in ``text``."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
