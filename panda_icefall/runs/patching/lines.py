"""PANDA's two lines in a recipe's source: where they go, which are there, how it is without."""

import ast
import enum
from dataclasses import dataclass

from panda_icefall.runs.errors import UsageError

__all__ = [
    "DECORATOR",
    "IMPORT",
    "PatchKind",
    "PatchState",
    "add_lines",
    "check_removal",
    "read_state",
]

MARKER = b"# panda-icefall patch"
IMPORT = b"from panda_icefall.runs.native import with_panda  " + MARKER
DECORATOR = b"@with_panda  " + MARKER
_NAME = "with_panda"
_NEEDED = ("compute_loss", "train_one_epoch")


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
      reason: Why a partly applied patch is not a whole one; else empty.
      edited: Numbers of lines that carry the marker but are not PANDA's lines.
    """

    kind: PatchKind
    unpatched: bytes
    lines: tuple[int, ...] = ()
    reason: str = ""
    edited: tuple[int, ...] = ()


def add_lines(source: bytes) -> bytes:
    """An unpatched recipe with PANDA's lines in it; they end as their neighbours do.

    The import goes below the last import at the top level ahead of ``main``; the decorator goes
    on ``main``, above decorators that are there.

    Args:
      source: The bytes of the unpatched ``train.py``, with any line ending.

    Raises:
      UsageError: The source has not the shape of an icefall training script; the message names
        what was looked for.
    """
    tree = _parse(source)
    main = _main_function(tree)
    names = _top_level_names(tree)
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise UsageError(
            f"looked for {' and '.join(_NEEDED)} at the top level, defined or imported by name, "
            f"found no {' and no '.join(missing)}"
        )
    if not _calls_main(tree):
        raise UsageError("looked for a call of main() at the top level, found none")
    first = min([main.lineno, *(decorator.lineno for decorator in main.decorator_list)])
    imports = [
        node.end_lineno or node.lineno
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node.lineno < first
    ]
    if not imports:
        raise UsageError("looked for an import at the top level ahead of main(), found none")
    lines = source.splitlines(keepends=True)
    for after, text in ((first - 1, DECORATOR), (imports[-1], IMPORT)):
        before = lines[after - 1]
        lines.insert(after, text + before[len(before.rstrip(b"\r\n")) :])
    patched = b"".join(lines)
    if read_state(patched).kind is not PatchKind.APPLIED:
        raise UsageError(
            "looked for lines of their own for the last import and for `def main():`, found them "
            "sharing a line with other statements"
        )
    return patched


def read_state(source: bytes) -> PatchState:
    """Look for PANDA's lines in the bytes of a ``train.py``; edits elsewhere do not matter."""
    kept = source.splitlines(keepends=True)
    texts = dict(enumerate((line.rstrip(b"\r\n") for line in kept), start=1))
    marked = [i for i, text in texts.items() if text.rstrip().endswith(MARKER)]
    lines = tuple(i for i in marked if texts[i] in (IMPORT, DECORATOR))
    edited = tuple(i for i in marked if i not in lines)
    unpatched = b"".join(line for i, line in enumerate(kept, start=1) if i not in lines)
    if not marked:
        return PatchState(PatchKind.UNPATCHED, unpatched)
    if edited:
        reason = f"line {edited[0]} carries the patch's marker but was edited"
    else:
        reason = _why_partial(source, {i: texts[i] for i in lines})
    kind = PatchKind.PARTIAL if reason else PatchKind.APPLIED
    return PatchState(kind, unpatched, lines, reason, edited)


def _why_partial(source: bytes, ours: dict[int, bytes]) -> str:
    for text in (IMPORT, DECORATOR):
        count = list(ours.values()).count(text)
        if count != 1:
            return f"`{text.decode()}` is in {count} lines, expected 1"
    try:
        tree = _parse(source)
        main = _main_function(tree)
    except UsageError as error:
        return str(error)
    statements = {node.lineno for node in tree.body if isinstance(node, ast.ImportFrom)}
    decorators = {node.lineno for node in main.decorator_list}
    if any(i not in (statements if text == IMPORT else decorators) for i, text in ours.items()):
        first, second = ours
        return (
            f"lines {first} and {second} are not an import at the top level and a decorator of main"
        )
    return ""


def check_removal(state: PatchState) -> None:
    """Refuse to take out lines that the rest of a file needs.

    Raises:
      UsageError: The file would not be Python, or would use ``with_panda`` without binding it; the
        message names the line of the patched file.
    """
    try:
        tree = _parse(state.unpatched)
    except UsageError as error:
        lines = " and ".join(map(str, state.lines))
        raise UsageError(
            f"without lines {lines} it is {error} (counted without them); fix that first"
        ) from error
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == _NAME]
    is_theirs = any(isinstance(node.ctx, ast.Store) for node in uses)
    if not uses or is_theirs or _NAME in _top_level_names(tree):
        return
    used = min(node.lineno for node in uses)
    for line in state.lines:
        used += line <= used
    raise UsageError(
        f"line {used} uses {_NAME}, which the patch imports, and is not a line of the patch; "
        "remove that use by hand first"
    )


def _parse(source: bytes) -> ast.Module:
    try:
        return ast.parse(source, filename="train.py")
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"not Python source: {error}") from error


def _main_function(tree: ast.Module) -> ast.FunctionDef:
    """The one ``def main():`` at the top level; UsageError where that is not what is there."""
    looked_for = "looked for one `def main():` without parameters at the top level"
    found = [node for node in tree.body if getattr(node, "name", None) == "main"]
    if len(found) != 1 or not isinstance(found[0], ast.FunctionDef):
        lines = ", ".join(f"line {node.lineno}" for node in found)
        raise UsageError(f"{looked_for}, found {lines or 'no main'}")
    main = found[0]
    if any(ast.iter_child_nodes(main.args)):
        raise UsageError(
            f"{looked_for}, found main({ast.unparse(main.args)}) in line {main.lineno}"
        )
    return main


def _top_level_names(tree: ast.Module) -> set[str]:
    """Names of functions that are defined, and of anything imported by name."""
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def _calls_main(tree: ast.Module) -> bool:
    """Whether ``main()`` is called when the file runs, other than in a function or class."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "main"
        for statement in tree.body
        if not isinstance(statement, definitions)
        for node in ast.walk(statement)
    )
