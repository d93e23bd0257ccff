"""Run an unmodified recipe with what the user asked of PANDA around it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from panda_icefall.runs.doctor.imports import explained_imports
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_module import RecipeFile, panda_group_in_help, wants_help
from panda_icefall.runs.supervised import ExitStatus, supervised

__all__ = ["run_recipe"]


def run_recipe(
    train_py: str | Path,
    recipe_args: Sequence[str],
    options: PandaOptions,
    *,
    is_json: bool = False,
) -> int:
    """Run ``python train_py recipe_args`` in this process, children of ``mp.spawn`` included.

    Without any PANDA option nothing is wrapped or replaced. With ``--help`` among the recipe's
    arguments its parser also shows the ``PANDA`` group.

    Args:
      train_py: The recipe's training script.
      recipe_args: The recipe's own arguments.
      options: What the user asked for.
      is_json: Also print the summary to stdout, as one line of JSON.

    Returns:
      The recipe's exit status, or 1 where it ended well but the contract was violated.

    Raises:
      UsageError: The file is no recipe that can be run so, or imports at its start what is not
        there, or its ``--exp-dir`` is a file.
      NotRoutedError: PANDA was asked for, and the first batch, or the run, ended without it.
      NothingTrainedError: The recipe ended well, and no batch was trained.
      Exception: Whatever the recipe raises.
    """
    recipe = RecipeFile(train_py)
    arguments = list(recipe_args)
    if wants_help(arguments) or not options.is_active:
        return _run_plain(recipe, arguments)
    recipe.require_guard()
    _check_exp_dir(arguments)
    watched = supervised(options, recipe.path, is_json=is_json)
    with watched as run, recipe.as_main(arguments) as module:
        future_flags = _define(recipe, module)
        run.install(module.__dict__)
        recipe.start(module, future_flags)
    return run.exit_status


def _check_exp_dir(arguments: Sequence[str]) -> None:
    """Refuse a file for a folder: recipes would, in a traceback, when they have begun.

    Raises:
      UsageError: ``--exp-dir`` names a file.
    """
    for word, following in zip(arguments, [*arguments[1:], ""]):
        name, equals, value = word.partition("=")
        folder = Path(value if equals else following)
        if name == "--exp-dir" and folder.is_file():
            raise UsageError(f"--exp-dir: got {folder}, a file; expected a folder")


def _run_plain(recipe: RecipeFile, arguments: list[str]) -> int:
    status = ExitStatus()
    group = panda_group_in_help() if wants_help(arguments) else contextlib.nullcontext()
    with recipe.as_main(arguments) as module, group, status:
        recipe.start(module, _define(recipe, module))
    return status.code


def _define(recipe: RecipeFile, module: ModuleType) -> int:
    with explained_imports(recipe.path):
        return recipe.define(module)
