"""Where PANDA's lines go in the source of a recipe, found by its structure."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from panda_icefall.runs.errors import UsageError

__all__ = [
    "DECORATOR",
    "IMPORT",
    "MARKER",
    "Insertion",
    "insert",
    "main_function",
    "parse",
    "place",
]

MARKER = b"# panda-icefall patch"
IMPORT = b"from panda_icefall.runs.native import with_panda  " + MARKER
DECORATOR = b"@with_panda  " + MARKER
_NEEDED = ("compute_loss", "train_one_epoch")


@dataclass(frozen=True)
class Insertion:
    """One line that a patched recipe has and the unpatched one has not.

    Attributes:
      after: Lines of the unpatched source that come ahead of it.
      text: The line without its ending.
      ending: The line's ending, as its neighbour's.
    """

    after: int
    text: bytes
    ending: bytes


def parse(source: bytes) -> ast.Module:
    """The syntax tree of ``source``.

    Raises:
      UsageError: It is not Python.
    """
    try:
        return ast.parse(source, filename="train.py")
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"not Python source: {error}") from error


def main_function(tree: ast.Module) -> ast.FunctionDef:
    """The one ``def main():`` at the top level of ``tree``.

    Raises:
      UsageError: There is none, more than one, or it has parameters.
    """
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


def place(source: bytes) -> tuple[Insertion, ...]:
    """Find where the lines go in an unpatched recipe, in the order of the file.

    The import goes below the last import at the top level ahead of ``main``; the decorator goes
    on ``main``, above decorators that are there.

    Args:
      source: The bytes of the unpatched ``train.py``, with any line ending.

    Returns:
      The insertions.

    Raises:
      UsageError: The source has not the shape of an icefall training script; the message names
        what was looked for.
    """
    tree = parse(source)
    main = main_function(tree)
    names = set(_top_level_names(tree))
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise UsageError(
            f"looked for {' and '.join(_NEEDED)} at the top level, defined or imported by name, "
            f"found no {' and no '.join(missing)}"
        )
    if not any(_is_call_of_main(node) for node in _executed_nodes(tree)):
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
    insertions = tuple(
        Insertion(after, text, _ending(lines[after - 1]))
        for after, text in ((imports[-1], IMPORT), (first - 1, DECORATOR))
    )
    _verify(tree, insert(source, insertions))
    return insertions


def insert(source: bytes, insertions: Sequence[Insertion]) -> bytes:
    """``source`` with the lines in it."""
    lines = source.splitlines(keepends=True)
    for insertion in reversed(insertions):
        lines.insert(insertion.after, insertion.text + insertion.ending)
    return b"".join(lines)


def _top_level_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def _executed_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes that run when the file does, other than in a function or class."""
    for statement in tree.body:
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from ast.walk(statement)


def _is_call_of_main(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "main"


def _ending(line: bytes) -> bytes:
    return line[len(line.rstrip(b"\r\n")) :]


def _verify(tree: ast.Module, patched: bytes) -> None:
    """Refuse places at which the lines would not be read as two statements of their own."""
    try:
        is_same = ast.dump(_without_ours(ast.parse(patched))) == ast.dump(tree)
    except (SyntaxError, ValueError, IndexError, UsageError):
        is_same = False
    if not is_same:
        raise UsageError(
            "looked for lines of their own for the last import and for `def main():`, found them "
            "sharing a line with other statements"
        )


def _without_ours(tree: ast.Module) -> ast.Module:
    main_function(tree).decorator_list.pop(0)
    ours = ast.dump(ast.parse(IMPORT).body[0])
    places = [i for i, node in enumerate(tree.body) if ast.dump(node) == ours]
    del tree.body[places[0]]
    return tree
