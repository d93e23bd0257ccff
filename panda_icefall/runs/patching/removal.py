"""What a recipe is without PANDA's lines: Python that needs no name of theirs."""

import ast
import symtable

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.patching.placement import parse
from panda_icefall.runs.patching.state import PatchState

__all__ = ["check_removal"]

_NAME = "with_panda"


def check_removal(source: bytes, state: PatchState) -> None:
    """Refuse to take out lines that the rest of a file needs.

    Args:
      source: The patched file.
      state: What was read from it.

    Raises:
      UsageError: The file would be no Python, or would use ``with_panda`` without binding it; the
        message names the line of ``source``.
    """
    try:
        tree = parse(state.unpatched)
    except UsageError as error:
        lines = " and ".join(map(str, state.lines))
        raise UsageError(
            f"without lines {lines} it is {error} (counted without them); mend that first"
        ) from error
    table = symtable.symtable(ast.unparse(tree), "train.py", "exec")
    if _is_bound(table) or not _uses_global(table):
        return
    used = min(
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == _NAME
    )
    kept = [i for i in range(1, len(source.splitlines()) + 1) if i not in state.lines]
    raise UsageError(
        f"line {kept[used - 1]} uses {_NAME}, which the patch imports, and is no line of the "
        "patch; take that use out by hand first"
    )


def _is_bound(table: symtable.SymbolTable) -> bool:
    """Whether the file itself gives the name a meaning at its top level."""
    if _NAME not in table.get_identifiers():
        return False
    symbol = table.lookup(_NAME)
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()


def _uses_global(table: symtable.SymbolTable) -> bool:
    if _NAME in table.get_identifiers():
        symbol = table.lookup(_NAME)
        is_outer = table.get_type() == "module" or symbol.is_global()
        if is_outer and symbol.is_referenced():
            return True
    return any(_uses_global(child) for child in table.get_children())
