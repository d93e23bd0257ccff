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
    """Look for PANDA's lines in the bytes of a ``train.py``; edits elsewhere do not matter.

    In a file that is Python a line counts where it is an import or a decorator, and text within a
    string does not; in one that is not, by its text alone.
    """
    kept = source.splitlines(keepends=True)
    texts = [line.rstrip(b"\r\n") for line in kept]
    marked = [i for i, text in enumerate(texts, 1) if text.rstrip().endswith(MARKER)]
    lines = tuple(i for i in marked if texts[i - 1] in (IMPORT, DECORATOR))
    try:
        tree = parse(source)
    except UsageError:
        pass
    else:
        in_strings = _lines_in_strings(tree)
        marked = [i for i in marked if i not in in_strings]
        statements = _imports_and_decorators(tree)
        lines = tuple(i for i in lines if i in statements and i not in in_strings)
    edited = tuple(i for i in marked if i not in lines)
    unpatched = b"".join(line for i, line in enumerate(kept, 1) if i not in lines)
    if not lines and not edited:
        return PatchState(PatchKind.UNPATCHED, unpatched)
    reason = _why_partial(source, texts, lines, edited)
    kind = PatchKind.PARTIAL if reason else PatchKind.APPLIED
    return PatchState(kind, unpatched, lines, reason, edited)


def _imports_and_decorators(tree: ast.Module) -> set[int]:
    """First lines of all imports by name and of all decorators."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.add(node.lineno)
        found.update(decorator.lineno for decorator in getattr(node, "decorator_list", ()))
    return found


def _lines_in_strings(tree: ast.Module) -> set[int]:
    """Lines that begin within a string."""
    found: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
        if is_text or isinstance(node, ast.JoinedStr):
            start, end = node.lineno, node.end_lineno  # type: ignore[attr-defined]
            found.update(range(start + 1, end + 1))
    return found


def _why_partial(
    source: bytes, texts: list[bytes], lines: tuple[int, ...], edited: tuple[int, ...]
) -> str:
    if edited:
        return f"line {edited[0]} carries the patch's marker but was edited"
    places = {}
    for text in (IMPORT, DECORATOR):
        found = [i for i in lines if texts[i - 1] == text]
        if len(found) != 1:
            return f"`{text.decode()}` stands in {len(found)} lines, expected 1"
        places[text] = found[0]
    try:
        tree = parse(source)
        main = main_function(tree)
    except UsageError as error:
        return str(error)
    statements = {node.lineno for node in tree.body if isinstance(node, ast.ImportFrom)}
    decorators = {node.lineno for node in main.decorator_list}
    if places[IMPORT] not in statements or places[DECORATOR] not in decorators:
        return (
            f"lines {lines[0]} and {lines[1]} are no import at the top level and decorator of main"
        )
    return ""
