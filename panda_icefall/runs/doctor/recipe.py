"""Whether a recipe's training script has what the launcher wraps, and where its files are."""

import ast
from pathlib import Path
from typing import Optional

from panda_icefall.runs.doctor.findings import Finding, ok, problem, warning
from panda_icefall.runs.doctor.recipe_losses import examine_losses
from panda_icefall.runs.doctor.recipe_sources import RecipeSources, Source
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.recipe_module import RecipeFile

__all__ = ["examine_imports", "examine_recipe", "find_train_py", "how_to_get"]

_EXPECTED = "an icefall recipe with compute_loss() and train_one_epoch()"


def find_train_py(recipe: Path) -> Path:
    """The training script of a recipe folder, or the script itself if that was named."""
    return (recipe / "train.py" if recipe.is_dir() else recipe).resolve()


def examine_recipe(recipe: Path, sources: RecipeSources) -> list[Finding]:
    """Everything that can be said of a recipe without importing it.

    Args:
      recipe: Its folder, or one of its training scripts.
      sources: The files its training script is made of.
    """
    train_py = find_train_py(recipe)
    try:
        RecipeFile(train_py).require_guard()
    except UsageError as error:
        others = sorted(path.name for path in train_py.parent.glob("train*.py"))
        if train_py.exists() or not others:
            return [problem("recipe", str(error), f"name the folder of {_EXPECTED}")]
        advice = f"name one of its training scripts instead: {', '.join(others)}"
        return [problem("recipe", str(error), advice)]
    return [
        ok("recipe", f"{train_py} with a main guard, made of {_names(sources)}"),
        *_examine_functions(sources),
        *examine_imports(sources),
        *examine_losses(sources),
    ]


def _names(sources: RecipeSources) -> str:
    return ", ".join(
        str(source.path.relative_to(sources.of_recipe[0].path.parent))
        for source in sources.of_recipe
    )


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
        return problem(f"{name}()", text, "name them as icefall does; the launcher goes by name")
    return ok(f"{name}()", f"{where} takes {', '.join(needed)}")


def _parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    return [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def _definition(
    sources: RecipeSources, source: Source, name: str, depth: int = 0
) -> Optional[tuple[Source, ast.FunctionDef]]:
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


def examine_imports(sources: RecipeSources) -> list[Finding]:
    """Files that cannot be read, and modules that are nowhere."""
    findings = [
        problem("imports", f"{path.name} cannot be read: {reason}", "mend the checkout")
        for path, reason in sources.unreadable.items()
    ]
    findings += [
        problem(
            "imports",
            f"{importer.name} imports {module}, which is neither beside it nor installed",
            how_to_get(module, sources),
        )
        for module, importer in sources.missing.items()
    ]
    return findings or [ok("imports", "all modules the recipe imports are there")]


def how_to_get(module: str, sources: RecipeSources) -> str:
    """What to do about a top-level module that a recipe imports and that is nowhere."""
    if module == "icefall":
        if sources.root is None:
            return "clone icefall, and export PYTHONPATH=<its folder>:$PYTHONPATH"
        return f"export PYTHONPATH={sources.root}:$PYTHONPATH"
    if module == "k2":
        return "install the k2 wheel that the finding on k2 names"
    corpus_folder = sources.train_py.parents[1]
    # A recipe's folder is often called as the package it trains: it must hold what is imported.
    if sources.has_parts_in(corpus_folder, module):
        return f"export PYTHONPATH={corpus_folder}:$PYTHONPATH, as this recipe's own scripts expect"
    return f"install {module}, or mend the checkout if it is a file of the recipe"
