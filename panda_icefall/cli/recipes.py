"""``run`` and ``check``: a recipe's own train.py, with PANDA around it."""

import functools
import traceback
from collections.abc import Callable

import click

from panda_icefall.cli.command import INTERRUPTED, RECIPE_COMMAND, Command
from panda_icefall.cli.paths import AS_TYPED

__all__ = ["check", "run"]

_USAGE = "A wrong argument, or icefall, k2 or torch is missing; the message says what to do."
_JSON = "When the run ends, print its summary to stdout as one line of JSON, after the recipe's."


@click.command(
    cls=Command,
    short_help="Train with a recipe's own script, PANDA on or off.",
    context_settings=RECIPE_COMMAND,
    examples=(
        "panda-icefall run zipformer/train.py --max-duration 600 --use-panda 1",
        "panda-icefall run zipformer/train.py --help    # the recipe's options and PANDA's",
    ),
    exit_statuses={
        0: "The recipe ended well; any other status is the recipe's own.",
        1: "The contract is violated, or nothing was routed or trained.",
        2: _USAGE,
        **INTERRUPTED,
        143: "Ended by SIGTERM.",
    },
)
@click.option("--json", "is_json", is_flag=True, help=_JSON)
@click.argument("train_py", metavar="TRAIN_PY", type=AS_TYPED)
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def run(is_json: bool, train_py: str, arguments: tuple[str, ...]) -> Callable[[], int]:
    """Run a recipe's TRAIN_PY with ARGS, as python would; --use-panda 1 routes its loss.

    Pass PANDA's options with the recipe's own flags; TRAIN_PY --help lists both.
    """
    from panda_icefall.runs import run_recipe, split_panda_arguments

    options, recipe_args = split_panda_arguments(arguments)
    return functools.partial(run_recipe, train_py, recipe_args, options, is_json=is_json)


@click.command(
    cls=Command,
    short_help="Compare dense and routed on a recipe's first batches.",
    context_settings=RECIPE_COMMAND,
    examples=(
        "panda-icefall check zipformer/train.py --max-duration 100 --exp-dir check",
        "panda-icefall check --json zipformer/train.py --exp-dir check | tail -n 1 > check.json",
    ),
    exit_statuses={
        0: "The contract holds.",
        1: "It is violated, there was nothing to compare, or the recipe failed.",
        2: _USAGE,
        **INTERRUPTED,
        143: "Ended by SIGTERM.",
    },
)
@click.option("--updates", metavar="INTEGER", help="Batches to compare and train on; default 3.")
@click.option("--json", "is_json", is_flag=True, help=_JSON)
@click.argument("train_py", metavar="TRAIN_PY", type=AS_TYPED)
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def check(
    updates: str | None, is_json: bool, train_py: str, arguments: tuple[str, ...]
) -> Callable[[], int]:
    """Compare dense and routed training of TRAIN_PY on its own first batches, then stop.

    --updates may also be one of ARGS.
    """
    from panda_icefall.runs import run_recipe, split_panda_arguments

    given = arguments if updates is None else ("--updates", updates, *arguments)
    options, recipe_args = split_panda_arguments(given, is_check=True)
    run = functools.partial(run_recipe, train_py, recipe_args, options, is_json=is_json)
    return functools.partial(_checked, run, train_py)


def _checked(run: Callable[[], int], train_py: str) -> int:
    """The status of a check; an error of the recipe's own is shown whole, then said in one line."""
    from panda_icefall.routing import PandaError

    try:
        return run()
    except PandaError:
        raise
    except Exception as error:
        traceback.print_exc()
        words = " ".join(str(error).split())
        if type(error).__name__ == "ProcessRaisedException":  # holds a child's whole traceback
            words = str(error).strip().splitlines()[-1]
        advice = (
            f"see whether `python {train_py}` trains with the same arguments, and what "
            f"`panda-icefall doctor {train_py}` says"
        )
        if isinstance(error, OSError) and error.filename is not None:
            words = f"{error.filename}: {error.strerror}"
        # sentencepiece's is an OSError of these words.
        of_files = ("FileNotFoundError", "PermissionError", "Not found: ", "OSError: Not found: ")
        is_missing = isinstance(error, (FileNotFoundError, PermissionError))
        if is_missing or words.startswith(of_files):
            advice = (
                "prepare the recipe's data, by the prepare.sh of its corpus, or name its folders "
                "by the recipe's own options, then check again"
            )
        click.echo(
            f"panda-icefall: check: not finished, {train_py} ended with the "
            f"{type(error).__name__} above: {words}; {advice}",
            err=True,
        )
        return 1
