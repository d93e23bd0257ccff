"""The ``panda-icefall`` command: parse, call one function, print."""

import functools
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import click

import panda_icefall
from panda_icefall.routing import PandaError
from panda_icefall.runs import NotRoutedError, UsageError, run_recipe, split_panda_arguments

__all__ = ["main"]

EXIT_USAGE = 2
_RECIPE_COMMAND: dict[str, Any] = {
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(panda_icefall.__version__, prog_name="panda-icefall")
def cli() -> None:
    """Train icefall transducers without the [B, T, s_range, C] logits."""


@cli.command(context_settings=_RECIPE_COMMAND)
@click.argument("train_py", metavar="TRAIN_PY")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def run(train_py: str, arguments: tuple[str, ...]) -> Callable[[], int]:
    """Run a recipe's TRAIN_PY with ARGS, as python would; --use-panda 1 routes its loss.

    TRAIN_PY --help lists the PANDA options beside the recipe's own.
    """
    options, recipe_args = split_panda_arguments(arguments)
    return functools.partial(run_recipe, train_py, recipe_args, options)


@cli.command(context_settings=_RECIPE_COMMAND)
@click.option("--updates", metavar="INTEGER", help="Batches to compare and train on; default 3.")
@click.argument("train_py", metavar="TRAIN_PY")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def check(updates: Optional[str], train_py: str, arguments: tuple[str, ...]) -> Callable[[], int]:
    """Compare dense and routed training of TRAIN_PY on its own first batches, then stop.

    Exit status 1 where the contract is violated. --updates may also stand among ARGS.
    """
    given = arguments if updates is None else ("--updates", updates, *arguments)
    options, recipe_args = split_panda_arguments(given, is_check=True)
    return functools.partial(run_recipe, train_py, recipe_args, options)


@cli.group()
def synth() -> None:
    """Synthetic data in a recipe's own layout."""


@synth.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--utterances", type=click.IntRange(min=1), default=160, show_default=True)
@click.option("--vocab", type=click.IntRange(min=1), default=4336, show_default=True)
@click.option("--seed", type=int, default=42, show_default=True)
@click.option(
    "--icefall-root",
    type=click.Path(path_type=Path),
    envvar="ICEFALL_ROOT",
    required=True,
    help="An icefall checkout, whose own script prepares the lang folder.",
)
def aishell(out: Path, utterances: int, vocab: int, seed: int, icefall_root: Path) -> None:
    """Write features and a lang folder on which the AISHELL recipes train."""
    from panda_icefall.runs.synth.aishell import synth_aishell

    try:
        synth_aishell(out, utterances, vocab, seed, icefall_root)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error
    click.echo(f"wrote {out}")


def main() -> None:
    """Run the command; what the user can mend is one line on stderr and exit status 2."""
    try:
        result = cli.main(prog_name="panda-icefall", standalone_mode=False)
        # Outside of click, which would answer a recipe's Ctrl-C with a bare "Aborted!".
        sys.exit(result() if callable(result) else result or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except NotRoutedError as error:
        click.echo(f"panda-icefall: {error}", err=True)
        sys.exit(1)
    except PandaError as error:
        click.echo(f"panda-icefall: {error}", err=True)
        sys.exit(EXIT_USAGE)
