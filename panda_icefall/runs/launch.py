"""Run an unmodified recipe with what the user asked of PANDA around it."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Union

from rich.console import Console
from torch.multiprocessing import ProcessRaisedException

from panda_icefall.routing import PandaError
from panda_icefall.runs.errors import NotRoutedError, UsageError
from panda_icefall.runs.memory.log import check_writable
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.recipe_module import RecipeFile, panda_group_in_help
from panda_icefall.runs.run_report import RunOutcome, print_summary, read_outcomes
from panda_icefall.runs.session import TrainingSession
from panda_icefall.runs.spawn import panda_in_children

__all__ = ["run_recipe"]

EXIT_VIOLATED = 1
_NAMED_ERRORS = {"NotRoutedError": NotRoutedError, "UsageError": UsageError}


def run_recipe(
    train_py: Union[str, Path], recipe_args: Sequence[str], options: PandaOptions
) -> int:
    """Run ``python train_py recipe_args`` in this process, children of ``mp.spawn`` included.

    Without any PANDA option nothing is wrapped or replaced. With ``--help`` among the recipe's
    arguments its parser also shows the ``PANDA`` group.

    Args:
      train_py: The recipe's training script.
      recipe_args: The recipe's own arguments.
      options: What the user asked for.

    Returns:
      The recipe's exit status, or 1 where it ended well but the contract was violated.

    Raises:
      UsageError: The file is no recipe that can be run so.
      NotRoutedError: PANDA was asked for, and the first batch, or the run, ended without it.
      Exception: Whatever the recipe raises.
    """
    recipe = RecipeFile(train_py)
    arguments = list(recipe_args)
    wants_help = "-h" in arguments or "--help" in arguments
    if wants_help or not options.is_active:
        return _run_plain(recipe, arguments, wants_help)

    recipe.require_guard()
    if options.memory_log is not None:
        check_writable(options.memory_log)
    session = TrainingSession(options)
    status = _ExitStatus()
    ranks: list[RunOutcome] = []
    with tempfile.TemporaryDirectory(prefix="panda-icefall-") as folder:
        outcomes = Path(folder)
        has_begun = False
        spawned: list[int] = []
        try:
            with (
                _named_error_of_child(outcomes),
                session.running(),
                contextlib.ExitStack() as stack,
            ):
                module = stack.enter_context(recipe.as_main(arguments))
                spawned = stack.enter_context(panda_in_children(options, recipe.path, outcomes))
                stack.enter_context(status)
                future_flags = recipe.define(module)
                session.install(module.__dict__, str(recipe.path))
                has_begun = True
                recipe.start(module, future_flags)
        finally:
            if has_begun:
                ranks = _report(session, spawned, outcomes)
    if status.code != 0:
        return status.code
    if options.use_panda and not any(rank.counters.losses_routed for rank in ranks):
        raise NotRoutedError(
            f"PANDA was asked for, but {recipe.path} ended after "
            f"{sum(rank.batches for rank in ranks)} training batches without a routed loss; "
            "expected its train_one_epoch() to call compute_loss() at least once"
        )
    return _contract_status(ranks, session.console)


def _report(session: TrainingSession, spawned: list[int], outcome_folder: Path) -> list[RunOutcome]:
    """Print the summary of a run that has begun, however it ended; returns every rank's outcome."""
    # Where children trained, this process did nothing worth a row of its own.
    ranks = read_outcomes(outcome_folder) if spawned else [session.outcome()]
    print_summary(ranks, session.console, has_routing=session.options.use_panda)
    silent = sorted(set(spawned) - {outcome.rank for outcome in ranks})
    if silent:
        session.console.print(f"No outcome was left by rank(s) {', '.join(map(str, silent))}.")
    return ranks


def _run_plain(recipe: RecipeFile, arguments: list[str], wants_help: bool) -> int:
    status = _ExitStatus()
    group = panda_group_in_help() if wants_help else contextlib.nullcontext()
    with recipe.as_main(arguments) as module, group, status:
        recipe.start(module, recipe.define(module))
    return status.code


class _ExitStatus(contextlib.AbstractContextManager):
    """Turns ``sys.exit`` of the block into a status, as the interpreter would."""

    def __init__(self) -> None:
        self.code = 0

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if not isinstance(error, SystemExit):
            return False
        if error.code is None or isinstance(error.code, int):
            self.code = error.code or 0
        else:
            print(error.code, file=sys.stderr)
            self.code = 1
        return True


@contextlib.contextmanager
def _named_error_of_child(outcome_folder: Path) -> Iterator[None]:
    """Raise here what a spawned child would bury in the traceback of its process."""
    try:
        yield
    except ProcessRaisedException as error:
        for kind, message in (o.error for o in read_outcomes(outcome_folder) if o.error):
            named = {"NotRoutedError": NotRoutedError, "UsageError": UsageError}.get(
                kind, PandaError
            )
            raise named(message) from error
        raise


def _contract_status(outcomes: list[RunOutcome], console: Console) -> int:
    violated = [outcome for outcome in outcomes if outcome.violations]
    for outcome in violated:
        for violation in outcome.violations:
            line = f"contract violated (rank {outcome.rank}): {violation}"
            console.print(line, style="red", markup=False, soft_wrap=True)
    return EXIT_VIOLATED if violated else 0
