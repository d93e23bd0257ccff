"""The one decorator that a patched recipe carries: PANDA's options without the launcher."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from panda_icefall.routing import PandaError
from panda_icefall.runs.errors import exit_with
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.panda_arguments import split_panda_arguments
from panda_icefall.runs.recipe_module import panda_group_in_help, wants_help
from panda_icefall.runs.supervised import supervised

__all__ = ["with_panda"]


def with_panda(main: Callable[..., Any]) -> Callable[..., Any]:
    """Let a recipe's ``main()`` take the options of ``panda-icefall run`` from its command line.

    ``./train.py ARGS`` then does what ``panda-icefall run train.py ARGS`` does to the unpatched
    recipe: the recipe sees its own words only, children of ``mp.spawn`` included in what is put
    around its training, and with ``--help`` its parser shows the ``PANDA`` group. Without any
    PANDA option ``main`` runs as it is; so it does under the launcher, which leaves no such option.

    Args:
      main: The function that parses the command line and trains, at the top level of the recipe.

    Returns:
      ``main`` with that around it. Where a PANDA option is given it ends the process as the
      launcher would: status 1 where nothing was routed or trained, or the contract is violated, 2
      for what was typed wrongly, else the recipe's own status.
    """
    applied_in = sys._getframe(1).f_globals

    @functools.wraps(main)
    def main_with_panda(*args: Any, **kwargs: Any) -> Any:
        try:
            options, words = split_panda_arguments(sys.argv[1:])
        except PandaError as error:
            exit_with(error)
        start = functools.partial(main, *args, **kwargs)
        with _command_line(words):
            if wants_help(words):
                with panda_group_in_help():
                    return start()
            # Nothing may be caught here: it may be the launcher's, which has the last word.
            if not options.is_active:
                return start()
            return _start_supervised(start, options, _recipe_globals(main, applied_in))

    return main_with_panda


def _recipe_globals(main: Callable[..., Any], applied_in: dict[str, Any]) -> dict[str, Any]:
    """The globals of the recipe: those in which ``with_panda`` stands, as the patch writes it.

    They need not be those of ``main``, which another decorator may have made in its own module.
    Where ``with_panda`` was called from elsewhere, the recipe is where ``main`` was defined.
    """
    if "train_one_epoch" in applied_in:
        return applied_in
    return getattr(inspect.unwrap(main), "__globals__", applied_in)


def _start_supervised(
    start: "functools.partial[Any]", options: PandaOptions, recipe: dict[str, Any]
) -> Any:
    results: list[Any] = []
    train_py = Path(recipe.get("__file__", recipe["__name__"])).resolve()
    try:
        with supervised(options, train_py) as run:
            run.install(recipe)
            results.append(start())
    except PandaError as error:
        exit_with(error)
    if run.exit_status != 0 or not results:  # a reached bound and sys.exit() end the process
        sys.exit(run.exit_status)
    return results[0]


@contextlib.contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """Leave the recipe's own words in ``sys.argv``."""
    given = sys.argv
    sys.argv = [given[0], *words]
    try:
        yield
    finally:
        sys.argv = given
