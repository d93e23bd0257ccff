"""Where a recipe holds k2's functions past the patch, which replaces them in one module."""

import ast
from collections.abc import Iterator
from typing import Optional

from panda_icefall.routing.hosts import HOSTS, OWN_FUNCTIONS, REPLACED_NAMES
from panda_icefall.runs.doctor.findings import Finding, problem, warning
from panda_icefall.runs.doctor.k2_build import find_k2
from panda_icefall.runs.doctor.recipe_sources import RecipeSources, Source

__all__ = ["examine_bindings"]

_TOO_EARLY = (
    "is bound before the patch in processes spawned for --world-size above 1, and in any process "
    "of a train.py with the lines of `panda-icefall patch`"
)
_OR_ELSE = "; or start the unpatched recipe by panda-icefall run, with --world-size 1"


def examine_bindings(sources: RecipeSources) -> list[Finding]:
    """Names imported from k2, functions kept at import, and the stand-in for a k2 that is there.

    Args:
      sources: The files a training script is made of.
    """
    has_k2 = find_k2() is not None
    findings: list[Finding] = []
    for source in sources.of_recipe:
        findings += _imported_by_name(source)
        findings += _kept_at_import(source)
        if has_k2:
            findings += _stand_in_of_k2(source)
    return findings


def _imported_by_name(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        names = [alias.name for alias in node.names if alias.name in REPLACED_NAMES]
        statement = f"`from {node.module} import {', '.join(names)}`"
        where = f"{source.path.name}:{node.lineno} has {statement}"
        advice = f"import the module, as `import k2`, and call k2.{'(), k2.'.join(names)}()"
        if names and node.module in HOSTS:
            yield warning("import by name", f"{where}, which {_TOO_EARLY}", advice + _OR_ELSE)
        elif names and node.module.startswith("k2."):
            text = f"{where}: the patch is in k2, and does not reach {node.module}"
            yield problem("import by name", text, advice)


def _kept_at_import(source: Source) -> Iterator[Finding]:
    """Functions that are read, and not called, while the file is imported."""
    called = {id(node.func) for node in ast.walk(source.tree) if isinstance(node, ast.Call)}
    for node in _run_at_import(source.tree):
        if not isinstance(node, ast.Attribute) or id(node) in called:
            continue
        owner, _, function = (source.full_name(node) or "").rpartition(".")
        if owner in HOSTS and function in REPLACED_NAMES:
            where = f"{source.path.name}:{node.lineno} keeps {owner}.{function}"
            advice = f"call k2.{function}() where it is used"
            yield warning("kept at import", f"{where}, which {_TOO_EARLY}", advice + _OR_ELSE)


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes outside of function bodies."""
    for child in ast.iter_child_nodes(tree):
        yield child
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for part in (*child.decorator_list, child.args):
                yield from ast.walk(part)
        elif isinstance(child, ast.Lambda):
            yield from ast.walk(child.args)
        else:
            yield from _run_at_import(child)


def _stand_in_of_k2(source: Source) -> Iterator[Finding]:
    uses = {
        source.full_name(node)
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.Attribute, ast.Name))
    }
    if not uses & {f"{OWN_FUNCTIONS}.{name}" for name in REPLACED_NAMES}:
        return
    line = _unconditional_import(source)
    if line is not None:
        yield problem(
            "stand-in for k2",
            f"{source.path.name}:{line} imports {OWN_FUNCTIONS} where k2 is installed: the patch "
            "is in k2, and no loss will be routed",
            "`import k2`, and the stand-in only where that raises ImportError",
        )


def _unconditional_import(source: Source) -> Optional[int]:
    """Line of an import of the stand-in that does not hang on a condition."""
    conditional = {
        id(inner)
        for outer in ast.walk(source.tree)
        if isinstance(outer, ast.ExceptHandler)
        or (isinstance(outer, ast.If) and not isinstance(outer.test, ast.Constant))
        for inner in ast.walk(outer)
    }
    package, _, module = OWN_FUNCTIONS.rpartition(".")
    for node in ast.walk(source.tree):
        if id(node) in conditional:
            continue
        if isinstance(node, ast.Import):
            found = any(alias.name == OWN_FUNCTIONS for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            found = node.module == OWN_FUNCTIONS or (node.module == package and module in names)
        else:
            continue
        if found:
            return node.lineno
    return None
