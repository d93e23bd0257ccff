"""A report in Markdown as one HTML file that needs nothing else."""

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["as_page"]

# What the report uses, and nothing else: no links, and no HTML from a recipe's own texts.
_BLOCKS = ("heading", "fence", "list", "table")
_WITHIN = ("emphasis", "escape", "entity", "image")
_MOST_DIGITS = 20  # a cell that is longer holds words beside its number
_TONES = {"\N{CHECK MARK}": "good", "\N{BALLOT X}": "bad", "\N{EN DASH}": "open"}


def as_page(markdown: str, title: str, kind: str, tone: str, figures: Mapping[str, bytes]) -> str:
    """The Markdown as one HTML file that needs nothing else: styles and figures are in it.

    Args:
      markdown: The report.
      title: What the browser's window is called.
      kind: What sort of report it is, above its title.
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
<p class="kind">{escape(kind)}</p>
{body}</main>
</body>
</html>
"""


def _style(tokens: Sequence[Token], tone: str, figures: Mapping[str, bytes]) -> None:
    """Give the tokens the classes of the stylesheet, rows their headers, and images their bytes."""
    is_first = True  # the first paragraph says how the run stands
    row: list[Token] = []
    table: Token | None = None
    for index, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h1":
            _break_at_parts(tokens[index + 1])
        elif token.type == "table_open":
            table = token
        elif token.type == "tr_open":
            row = []
        elif token.type in ("th_open", "td_open"):
            if token.attrs.pop("style", None):
                is_long = len(tokens[index + 1].content) > _MOST_DIGITS
                token.attrSet("class", "number long" if is_long else "number")
            elif row and table is not None:  # a cell of words beside the row's name
                table.attrSet("class", "words")
            if token.type == "th_open":
                token.attrSet("scope", "col")
            elif not row:
                _name_row(token, tokens[index + 1].content)
                _break_at_parts(tokens[index + 1])
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


def _break_at_parts(inline: Token) -> None:
    """Let a path or a parameter's name, which a phone is too narrow for, break behind its parts."""
    broken: list[Token] = []
    for child in inline.children or ():
        if child.type != "text":
            broken.append(child)
            continue
        for part in re.split(r"(?<=[/_.])(?=[^\W\d])", child.content):
            broken += [
                Token("text", "", 0, content=part),
                Token("html_inline", "", 0, content="<wbr>"),
            ]
        del broken[-1]
    inline.children = broken


def _kind_of(inline: Token) -> str | None:
    """The class of a paragraph that is bold or slanted as a whole."""
    within = [child for child in inline.children or () if child.type != "text" or child.content]
    if not within:
        return None
    if within[0].type == "image":
        return "figure"
    ends = within[0].type, within[-1].type
    kinds = {("strong_open", "strong_close"): "alert", ("em_open", "em_close"): "caption"}
    return kinds.get(ends)


def _embed(image: Token, figures: Mapping[str, bytes]) -> None:
    png = figures.get(str(image.attrs["src"]))
    if png is None:
        image.type, image.children = "text", None
        return
    image.attrs["src"] = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
