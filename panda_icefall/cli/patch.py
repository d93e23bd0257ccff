"""``patch``: PANDA's options inside a recipe's own train.py."""

from pathlib import Path

import click

from panda_icefall.cli.command import Command, Group
from panda_icefall.cli.paths import GIVEN

__all__ = ["patch"]

_REFUSED = "The script cannot be patched so; the message says why."


@click.group(
    cls=Group,
    short_help="Put PANDA's options into a recipe's own train.py.",
    examples=(
        "panda-icefall patch apply egs/aishell/ASR/zipformer",
        "./zipformer/train.py --use-panda 1",
    ),
    exit_statuses={
        0: "The lines are as asked.",
        1: "Of check: they cannot be put in.",
        2: _REFUSED,
    },
)
def patch() -> None:
    """PANDA's options in a recipe's own train.py: two lines, put in or taken out again.

    RECIPE_DIR is a recipe's folder, or a training script other than its train.py.
    """


@patch.command(
    "apply",
    cls=Command,
    examples=("panda-icefall patch apply egs/aishell/ASR/zipformer",),
    exit_statuses={0: "The lines are there.", 2: _REFUSED},
)
@click.argument("recipe", metavar="RECIPE_DIR", type=GIVEN)
@click.option("--force", is_flag=True, help="Also where the doctor sees no loss to route.")
def patch_apply(recipe: Path, force: bool) -> None:
    """Put the lines in; ./train.py --use-panda 1 then needs no launcher."""
    from panda_icefall.runs.patching.recipe_file import apply_patch

    result = apply_patch(recipe, is_forced=force)
    lines = " and ".join(map(str, result.lines))
    verb = "applied to" if result.is_changed else "already applied to"
    click.echo(f"{verb} {result.path}: lines {lines}")


@patch.command(
    "revert",
    cls=Command,
    examples=("panda-icefall patch revert egs/aishell/ASR/zipformer",),
    exit_statuses={0: "The lines are not there.", 2: _REFUSED},
)
@click.argument("recipe", metavar="RECIPE_DIR", type=GIVEN)
def patch_revert(recipe: Path) -> None:
    """Take the lines out; the file is then what it was, byte for byte."""
    from panda_icefall.runs.patching.recipe_file import revert_patch

    result = revert_patch(recipe)
    verb = "taken out of" if result.is_changed else "not patched:"
    click.echo(f"{verb} {result.path}")


@patch.command(
    "check",
    cls=Command,
    examples=("panda-icefall patch check egs/aishell/ASR/zipformer",),
    exit_statuses={0: "The lines are there, or can be put in.", 1: "They cannot."},
)
@click.argument("recipe", metavar="RECIPE_DIR", type=GIVEN)
def patch_check(recipe: Path) -> int:
    """Say whether the lines are there, or could be put in; exit status 1 where they cannot."""
    from panda_icefall.runs import UsageError
    from panda_icefall.runs.patching.recipe_file import check_patch, describe_check

    try:
        result = check_patch(recipe)
    except UsageError as error:
        click.echo(f"not applicable: {error}")
        return 1
    click.echo(describe_check(result))
    return 1 if result.refusal else 0
