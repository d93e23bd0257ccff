"""The pieces of a report in Markdown; markup in the texts that are given is escaped."""

import re
from collections.abc import Iterable, Sequence

__all__ = ["alert", "code", "picture", "plain", "table"]

# An underscore between letters or digits is none: names of modules stay as they are.
_MARKUP = re.compile(r"([\\`*]|(?<![^\W_])_|_(?![^\W_]))")


def plain(text: str) -> str:
    """``text`` in one line, with what Markdown or HTML would take for markup made harmless."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(r"\\\1", line)


def alert(text: str) -> str:
    """A paragraph that must not be overlooked."""
    return f"**{plain(text)}**"


def code(text: str) -> str:
    """Commands, logs or a configuration, in a fence longer than any run of backticks in them."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def picture(file_name: str, caption: str) -> str:
    """A figure that lies beside the report, and what it shows."""
    alternative = plain(caption).replace("[", "(").replace("]", ")")
    return f"![{alternative}]({file_name})\n\n*{plain(caption)}*"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    *,
    is_textual: bool = False,
) -> str:
    """Rows under a header; the first column names the row.

    Args:
      columns: Texts of the header.
      rows: As long as ``columns`` each.
      caption: What the table shows.
      is_textual: The other columns are words rather than figures.
    """
    rule = " --- |" if is_textual else " ---: |"
    lines = [_row(columns), "| --- |" + rule * (len(columns) - 1), *map(_row, rows)]
    return "\n".join(lines) + (f"\n\n*{plain(caption)}*" if caption else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(plain(cell).replace("|", r"\|") for cell in cells) + " |"
