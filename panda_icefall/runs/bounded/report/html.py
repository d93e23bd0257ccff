"""The report as one HTML file that needs nothing else: styles and figures are inside it."""

import base64
from collections.abc import Mapping
from html import escape

from panda_icefall.runs.bounded.report.blocks import Block, Code, Document, Picture, Table, Text
from panda_icefall.runs.bounded.report.stylesheet import STYLESHEET

__all__ = ["as_html"]


def as_html(document: Document, figures: Mapping[str, bytes]) -> str:
    """The whole document.

    Args:
      document: What to show.
      figures: PNG bytes by file name, of every picture in the document.
    """
    sections = "\n".join(
        f"<section>\n<h2>{escape(section.heading)}</h2>\n"
        + "\n".join(_block(block, figures) for block in section.blocks)
        + "\n</section>"
        for section in document.sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(f"{document.label}: {document.title}")}</title>
<style>
{STYLESHEET}
</style>
</head>
<body>
<main>
{_first_screen(document)}
{sections}
</main>
</body>
</html>
"""


def _first_screen(document: Document) -> str:
    verdicts = "\n".join(
        f'<li class="{_tone(v.holds)}"><span class="sign" aria-hidden="true">{v.sign}</span>'
        f"<div><b>{escape(v.name)}</b> <em>{escape(v.answer)}</em>"
        f"<p>{escape(v.text)}</p></div></li>"
        for v in document.verdicts
    )
    facts = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in document.facts
    )
    parts = [
        '<p class="kind">PANDA bounded run: dense against routed training</p>',
        f"<h1>{escape(document.title)}</h1>",
        f'<p class="state {document.tone}"><strong>{escape(document.label)}</strong> '
        f"<span>{escape(document.sentence)}</span></p>",
        f"<pre>{escape(document.details)}</pre>" if document.details is not None else "",
        f'<ul class="verdicts">\n{verdicts}\n</ul>' if verdicts else "",
        _table(document.headline, "headline") if document.headline is not None else "",
        f"<dl>\n{facts}\n</dl>" if facts else "",
    ]
    for words, command in document.commands:
        parts.append(f"<p>{escape(words)}</p>\n<pre>{escape(command)}</pre>")
    return "<header>\n" + "\n".join(part for part in parts if part) + "\n</header>"


def _block(block: Block, figures: Mapping[str, bytes]) -> str:
    if isinstance(block, Text):
        kind = ' class="alert"' if block.is_alert else ""
        return f"<p{kind}>{escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>"
    if isinstance(block, Picture):
        data = base64.b64encode(figures[block.file_name]).decode("ascii")
        caption = escape(block.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return _table(block, "words" if block.is_textual else "figures")


def _table(table: Table, kind: str) -> str:
    header = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in row[1:])
        + "</tr>"
        for row in table.rows
    )
    caption = f"<figcaption>{escape(table.caption)}</figcaption>" if table.caption else ""
    return (
        f'<figure class="table"><table class="{kind}">\n<thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table>{caption}</figure>"
    )


def _tone(holds: object) -> str:
    return {True: "good", False: "bad"}.get(holds, "open")  # type: ignore[call-overload]
