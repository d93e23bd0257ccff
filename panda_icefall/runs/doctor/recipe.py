"""What a recipe's code says: what the launcher wraps, which loss it calls, what routing misses."""

import ast
from collections.abc import Iterator
from pathlib import Path

from panda_icefall.routing.hosts import (
    HOSTS,
    REPLACED_NAMES,
    SYMBOLS,
    Kind,
    names_of,
)
from panda_icefall.routing.recorded_joiners import is_joiner_name
from panda_icefall.runs.doctor.findings import Finding, ok, problem, warning
from panda_icefall.runs.doctor.imports import examine_imports
from panda_icefall.runs.doctor.recipe_sources import RecipeSources, Source
from panda_icefall.runs.errors import UsageError, reading
from panda_icefall.runs.recipe_module import RecipeFile

__all__ = ["examine_losses", "examine_recipe", "find_train_py"]

_EXPECTED = "an icefall recipe with compute_loss() and train_one_epoch()"

_KINDS = {f"{host}.{symbol.name}": symbol.kind for symbol in SYMBOLS for host in symbol.hosts}
_REPLACED = {f"{host}.{s.name}" for s in SYMBOLS if s.is_replaced for host in s.hosts}
_ROUTED = (Kind.PRUNED_LOSS, Kind.FULL_LOSS)
(_RECORDED,) = names_of(Kind.PRUNING)
_LOSSES = {symbol.name for symbol in SYMBOLS if symbol.is_loss} | set(
    "CTCLoss LFMMILoss mwer_loss cross_entropy CrossEntropyLoss".split()
)

_TOO_EARLY = (
    "is bound before the patch in processes spawned for --world-size above 1, and in any process "
    "of a train.py with the lines of `panda-icefall patch`"
)
_OR_ELSE = "; or start the unpatched recipe by panda-icefall run, with --world-size 1"


def find_train_py(recipe: Path) -> Path:
    """The training script of a recipe folder, or the script itself if that was named.

    Raises:
      UsageError: It lies where nobody may look.
    """
    with reading("RECIPE_DIR", recipe):
        return (recipe / "train.py" if recipe.is_dir() else recipe).resolve()


def examine_recipe(sources: RecipeSources) -> list[Finding]:
    """Everything that can be said of a recipe without importing it.

    Args:
      sources: The files its training script is made of.
    """
    train_py = sources.train_py
    try:
        RecipeFile(train_py).require_guard()
    except UsageError as error:
        others = sorted(path.name for path in train_py.parent.glob("train*.py"))
        advice = f"name the folder of {_EXPECTED}"
        if others and not train_py.exists():
            advice = f"name one of its training scripts instead: {', '.join(others)}"
        return [problem("recipe", str(error), advice)]
    names = (str(source.path.relative_to(train_py.parent)) for source in sources.of_recipe)
    return [
        ok("recipe", f"{train_py} has a main guard; its files: {', '.join(names)}"),
        *_examine_functions(sources),
        *examine_imports(sources),
        *examine_losses(sources),
    ]


def _examine_functions(sources: RecipeSources) -> list[Finding]:
    """The parameters by which the launcher takes calls apart, where the functions are defined."""
    train_py = sources.of_recipe[0]
    train = _definition(sources, train_py, "train_one_epoch")
    # compute_loss is looked up where the training loop lives, which train.py may import.
    home = train[0] if train is not None else train_py
    loss = _definition(sources, home, "compute_loss")
    findings = []
    for name, found, needed in (
        ("train_one_epoch", train, ("model", "train_dl")),
        ("compute_loss", loss, ("model", "batch")),
    ):
        if found is None:
            text = f"{train_py.path.name} defines no {name}() at its top level"
            findings.append(problem(f"{name}()", text, f"the launcher needs {_EXPECTED}"))
        else:
            findings.append(_examine_parameters(name, *found, needed))
    if train is not None and "optimizer" not in _parameters(train[1]):
        text = "has no parameter named optimizer"
        advice = "panda-icefall check needs one; panda-icefall run does not"
        findings.append(warning("train_one_epoch()", text, advice))
    return findings


def _examine_parameters(
    name: str, source: Source, function: ast.FunctionDef, needed: tuple[str, ...]
) -> Finding:
    where = f"{source.path.name}:{function.lineno}"
    given = _parameters(function)
    missing = [parameter for parameter in needed if parameter not in given]
    if missing:
        text = f"{where} has the parameters ({', '.join(given)}), none named {', '.join(missing)}"
        return problem(f"{name}()", text, "name them as icefall does; the launcher looks for these")
    return ok(f"{name}()", f"{where} takes {', '.join(needed)}")


def _parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    return [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def _definition(
    sources: RecipeSources, source: Source, name: str, depth: int = 0
) -> tuple[Source, ast.FunctionDef] | None:
    """A top-level function of a file, or of the neighbour it is imported from."""
    for statement in source.tree.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return source, statement
        if isinstance(statement, ast.ImportFrom) and statement.module and depth < 5:
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    home = sources.module(statement.module)
                    if home is None:
                        return None
                    return _definition(sources, home, alias.name, depth + 1)
    return None


def examine_losses(sources: RecipeSources) -> list[Finding]:
    """The transducer loss of a recipe, functions bound past the patch, and scripted joiners."""
    findings = list(_examine_uses(sources))
    for source in sources.of_recipe:
        findings += _imported_by_name(source)
        findings += _kept_at_import(source)
    for source in sources.of_recipe:
        findings += _scripted_joiners(source)
    return findings


def _examine_uses(sources: RecipeSources) -> Iterator[Finding]:
    used: dict[Kind, list[str]] = {}
    others = []
    for source in sources.of_recipe:
        for name, line in _uses(source):
            owner, _, function = name.rpartition(".")
            where = f"{name} ({source.path.name}:{line})"
            kind = _KINDS.get(name)
            if kind in (*_ROUTED, Kind.PRUNING):
                used.setdefault(kind, []).append(where)
            elif owner and function in _LOSSES:
                others.append(where)
    routed = [kind for kind in _ROUTED if kind in used]
    if not routed:
        calls = f"it calls {', '.join(others)}" if others else "no known loss is called either"
        yield problem(
            "transducer loss",
            f"none that PANDA routes is called in the recipe's files; {calls}",
            "train this recipe without --use-panda, or give it a transducer loss of k2, torchaudio "
            "or optimized_transducer",
        )
    for kind in routed:
        yield ok(kind.value, f"it calls {', '.join(used[kind])}")
    if Kind.PRUNED_LOSS in used and Kind.PRUNING not in used:
        yield problem(
            "pruning",
            f"k2.{_RECORDED} is called in none of the recipe's files; a joiner on inputs that were "
            "pruned otherwise is not recorded, and no loss will be routed",
            f"prune with k2.{_RECORDED}(), or train this recipe without --use-panda",
        )
    if routed == [Kind.FULL_LOSS] and not any(map(_sets_joiner, sources.of_recipe)):
        yield problem(
            "joiner",
            "no attribute called joiner is set in the recipe's files; one of another name is not "
            "recorded, and no loss will be routed",
            "call it joiner, or joiner_ and a word, in the model whose forward computes the loss",
        )


def _sets_joiner(source: Source) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and is_joiner_name(node.attr)
        for node in ast.walk(source.tree)
    )


def _uses(source: Source) -> Iterator[tuple[str, int]]:
    """Full names of all functions and modules that the file reads, with their lines."""
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            name = source.full_name(node)
            if name is not None:
                yield name, node.lineno


def _imported_by_name(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        names = [alias.name for alias in node.names if alias.name in REPLACED_NAMES]
        statement = f"`from {node.module} import {', '.join(names)}`"
        where = f"{source.path.name}:{node.lineno} has {statement}"
        is_of_host = any(f"{node.module}.{name}" in _REPLACED for name in names)
        host = node.module if is_of_host and node.module not in HOSTS else "k2"
        calls = ", ".join(f"{host}.{name}()" for name in names)
        advice = f"import the module, as `import {host}`, and call {calls}"
        if is_of_host:
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
        name = source.full_name(node) or ""
        if name in _REPLACED:
            where = f"{source.path.name}:{node.lineno} keeps {name}"
            owner, _, function = name.rpartition(".")
            advice = f"call {'k2' if owner in HOSTS else owner}.{function}() where it is used"
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


def _scripted_joiners(source: Source) -> Iterator[Finding]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and source.full_name(node.func) == "torch.jit.script":
            what = ", ".join(ast.unparse(argument) for argument in node.args)
        elif isinstance(node, ast.ClassDef) and _is_scripted(source, node):
            what = node.name
        else:
            continue
        if "joiner" in what.lower():
            yield problem(
                "scripted joiner",
                f"{source.path.name}:{node.lineno} compiles {what} with torch.jit, which takes "
                "tensors only and refuses a recorded joiner",
                "train with the unscripted joiner; script it for export only",
            )


def _is_scripted(source: Source, node: ast.ClassDef) -> bool:
    bases = {source.full_name(base) for base in node.bases}
    marks = {source.full_name(mark) for mark in node.decorator_list}
    return bool(bases & {"torch.jit.ScriptModule"} or marks & {"torch.jit.script"})
