"""The ``panda-icefall`` command: parse, call one function, print."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import panda_icefall
from panda_icefall.routing import PandaError
from panda_icefall.runs import UsageError, run_recipe, split_panda_arguments
from panda_icefall.runs.data.catalog import CORPORA
from panda_icefall.runs.errors import exit_with

__all__ = ["main"]

EXIT_INTERRUPTED = 130
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

    Pass PANDA's options with the recipe's own flags; TRAIN_PY --help lists both.
    """
    options, recipe_args = split_panda_arguments(arguments)
    return functools.partial(run_recipe, train_py, recipe_args, options)


@cli.command(context_settings=_RECIPE_COMMAND)
@click.option("--updates", metavar="INTEGER", help="Batches to compare and train on; default 3.")
@click.argument("train_py", metavar="TRAIN_PY")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def check(updates: str | None, train_py: str, arguments: tuple[str, ...]) -> Callable[[], int]:
    """Compare dense and routed training of TRAIN_PY on its own first batches, then stop.

    Exit status 1 where the contract is violated. --updates may also be one of ARGS.
    """
    given = arguments if updates is None else ("--updates", updates, *arguments)
    options, recipe_args = split_panda_arguments(given, is_check=True)
    return functools.partial(run_recipe, train_py, recipe_args, options)


@cli.command()
@click.argument("corpus", type=click.Choice(sorted(CORPORA)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--utterances", type=click.IntRange(min=1), default=160, show_default=True)
@click.option(
    "--lang",
    type=click.Choice(sorted({kind for corpus in CORPORA.values() for kind in corpus.langs})),
    help="Kind of vocabulary; default: the corpus' usual one.",
)
@click.option("--vocab", type=click.IntRange(min=1), help="Classes; default: the published ones.")
@click.option("--seed", type=int, default=42, show_default=True)
@click.option(
    "--icefall-root",
    type=click.Path(path_type=Path),
    envvar="ICEFALL_ROOT",
    required=True,
    help="An icefall checkout, whose own scripts prepare the lang folder.",
)
def synth(
    corpus: str,
    out: Path,
    utterances: int,
    lang: str | None,
    vocab: int | None,
    seed: int,
    icefall_root: Path,
) -> None:
    """Write a data folder on which the recipes of CORPUS train, in their own layout."""
    from panda_icefall.runs.data.synthetic import synth_data

    try:
        synth_data(corpus, out, icefall_root, utterances, lang, vocab, seed)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error
    click.echo(f"wrote {out}")


@cli.command()
@click.argument("config", metavar="CONFIG.yaml", type=click.Path(path_type=Path))
@click.option(
    "--icefall-root",
    type=click.Path(path_type=Path),
    envvar="ICEFALL_ROOT",
    required=True,
    help="An icefall checkout; only read.",
)
@click.option("--data", type=click.Path(path_type=Path), help="The recipe's data folder.")
@click.option("--synthetic", is_flag=True, help="Make data in its layout instead.")
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    help="Default: cuda where torch sees a GPU.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="New folder for logs and report, or that of an unfinished run, which is continued; "
    "default: a new one, panda-bounded/RECIPE-FORM[-NUMBER].",
)
@click.option(
    "--max-minutes",
    type=float,
    help="In place of the configuration's bounds.max_minutes.",
)
def bounded(config: Path, icefall_root: Path, **options: Any) -> Callable[[], int]:
    """Train a recipe dense and routed for a few batches, compare, and write a report.

    Configurations lie under egs/. Exit status: 0 everything holds; 1 something does not, or the
    run is partial; 2 it cannot be run as asked; 128 + N ended by signal N.
    """
    from panda_icefall.runs.bounded.request import check_request
    from panda_icefall.runs.bounded.run import run_bounded

    return functools.partial(run_bounded, check_request(config, icefall_root, **options))


@cli.command()
@click.argument("recipe", metavar="[RECIPE_DIR]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--icefall-root",
    type=click.Path(path_type=Path),
    envvar="ICEFALL_ROOT",
    help="An icefall checkout; default: the one around RECIPE_DIR, or the importable one.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the findings as one JSON document.")
def doctor(recipe: Path | None, icefall_root: Path | None, is_json: bool) -> int:
    """Say what is installed, whether it fits together, and whether RECIPE_DIR can be routed.

    Exit status 1 where something will fail.
    """
    from panda_icefall.runs.doctor import examine, print_diagnosis

    diagnosis = examine(recipe, icefall_root)
    if is_json:
        click.echo(diagnosis.as_json())
    else:
        print_diagnosis(diagnosis)
    return diagnosis.exit_status


@cli.group()
def patch() -> None:
    """PANDA's options in a recipe's own train.py: two lines, put in or taken out again.

    RECIPE_DIR is a recipe's folder, or a training script other than its train.py.
    """


@patch.command("apply")
@click.argument("recipe", metavar="RECIPE_DIR", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Also where the doctor sees no loss to route.")
def patch_apply(recipe: Path, force: bool) -> None:
    """Put the lines in; ./train.py --use-panda 1 then needs no launcher."""
    from panda_icefall.runs.patching.recipe_file import apply_patch

    result = apply_patch(recipe, is_forced=force)
    lines = " and ".join(map(str, result.lines))
    verb = "applied to" if result.is_changed else "already applied to"
    click.echo(f"{verb} {result.path}: lines {lines}")


@patch.command("revert")
@click.argument("recipe", metavar="RECIPE_DIR", type=click.Path(path_type=Path))
def patch_revert(recipe: Path) -> None:
    """Take the lines out; the file is then what it was, byte for byte."""
    from panda_icefall.runs.patching.recipe_file import revert_patch

    result = revert_patch(recipe)
    verb = "taken out of" if result.is_changed else "not patched:"
    click.echo(f"{verb} {result.path}")


@patch.command("check")
@click.argument("recipe", metavar="RECIPE_DIR", type=click.Path(path_type=Path))
def patch_check(recipe: Path) -> int:
    """Say whether the lines are there, or could be put in; exit status 1 where they cannot."""
    from panda_icefall.runs.patching.recipe_file import check_patch, describe_check

    try:
        result = check_patch(recipe)
    except UsageError as error:
        click.echo(f"not applicable: {error}")
        return 1
    click.echo(describe_check(result))
    return 1 if result.refusal else 0


def main() -> None:
    """Run the command; what the user can fix is one line on stderr and exit status 2."""
    try:
        result = cli.main(prog_name="panda-icefall", standalone_mode=False)
        # Outside of click, which would answer a recipe's Ctrl-C with a bare "Aborted!".
        sys.exit(result() if callable(result) else result or 0)
    except click.Abort:
        click.echo("panda-icefall: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PandaError as error:
        exit_with(error)
