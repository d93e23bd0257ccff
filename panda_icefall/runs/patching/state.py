"""What a recipe's train.py holds of PANDA's lines now."""

import ast
import enum
from dataclasses import dataclass

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.patching.placement import DECORATOR, IMPORT, MARKER, main_function, parse

__all__ = ["PatchKind", "PatchState", "read_state"]


class PatchKind(enum.Enum):
    """How much of the patch a file holds."""

    UNPATCHED = "unpatched"
    APPLIED = "applied"
    PARTIAL = "partly applied"


@dataclass(frozen=True)
class PatchState:
    """What one file holds of the patch.

    Attributes:
      kind: How much of it.
      unpatched: The file's bytes without PANDA's lines.
      lines: Numbers of PANDA's lines, from 1.
      reason: Why a partly applied patch is no whole one; else empty.
      edited: Numbers of lines that carry the marker but are none of PANDA's lines.
    """

    kind: PatchKind
    unpatched: bytes
    lines: tuple[int, ...] = ()
    reason: str = ""
    edited: tuple[int, ...] = ()


def read_state(source: bytes) -> PatchState:
    """Look for PANDA's lines in the bytes of a ``train.py``; edits elsewhere do not matter."""
    texts = [line.rstrip(b"\r\n") for line in source.splitlines(keepends=True)]
    lines = tuple(i for i, text in enumerate(texts, 1) if text in (IMPORT, DECORATOR))
    edited = tuple(
        i for i, text in enumerate(texts, 1) if text.rstrip().endswith(MARKER) and i not in lines
    )
    kept = source.splitlines(keepends=True)
    unpatched = b"".join(line for i, line in enumerate(kept, 1) if i not in lines)
    if not lines and not edited:
        return PatchState(PatchKind.UNPATCHED, unpatched)
    reason = _why_partial(source, texts, lines, edited)
    kind = PatchKind.PARTIAL if reason else PatchKind.APPLIED
    return PatchState(kind, unpatched, lines, reason, edited)


def _why_partial(
    source: bytes, texts: list[bytes], lines: tuple[int, ...], edited: tuple[int, ...]
) -> str:
    if edited:
        return f"line {edited[0]} carries the patch's marker but was edited"
    for text in (IMPORT, DECORATOR):
        count = texts.count(text)
        if count != 1:
            return f"`{text.decode()}` stands in {count} lines, expected 1"
    try:
        tree = parse(source)
        main = main_function(tree)
    except UsageError as error:
        return str(error)
    statements = {node.lineno for node in tree.body if isinstance(node, ast.ImportFrom)}
    decorators = {node.lineno for node in main.decorator_list}
    import_line, decorator_line = (texts.index(text) + 1 for text in (IMPORT, DECORATOR))
    if import_line not in statements or decorator_line not in decorators:
        return (
            f"lines {lines[0]} and {lines[1]} are no import at the top level and decorator of main"
        )
    return ""
