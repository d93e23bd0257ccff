"""``doctor`` and ``completion``: what this machine has, and what its shell may know."""

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from panda_icefall.cli.command import Command
from panda_icefall.cli.paths import GIVEN

__all__ = ["completion", "doctor"]

COMPLETE_VARIABLE = "_PANDA_ICEFALL_COMPLETE"  # click's own name for it


@click.command(
    cls=Command,
    short_help="Say what is installed, and whether a recipe can be routed.",
    examples=(
        "panda-icefall doctor",
        "panda-icefall doctor egs/aishell/ASR/zipformer",
        "panda-icefall doctor --report    # to paste into a bug report",
    ),
    exit_statuses={
        0: "Nothing will fail.",
        1: "Something will.",
        2: "A wrong argument, or torch is missing.",
    },
)
@click.argument("recipe", metavar="[RECIPE_DIR]", required=False, type=GIVEN)
@click.option(
    "--icefall-root",
    type=GIVEN,
    envvar="ICEFALL_ROOT",
    show_envvar=True,
    help="An icefall checkout; default: the one around RECIPE_DIR, or the importable one.",
)
@click.option("--json", "is_json", is_flag=True, help="Print the findings as one JSON document.")
@click.option(
    "--report",
    "is_report",
    is_flag=True,
    help="Print them as Markdown, to paste into a bug report; your home folder is shown as ~.",
)
def doctor(recipe: Path | None, icefall_root: Path | None, is_json: bool, is_report: bool) -> int:
    """Say what is installed, whether it fits together, and whether RECIPE_DIR can be routed."""
    from panda_icefall.runs.doctor import examine, print_diagnosis
    from panda_icefall.runs.report.progress import waiting

    if is_json and is_report:
        raise click.UsageError("--json, --report: got both; expected one of them")
    with waiting("looking at torch, k2, lhotse and icefall"):
        diagnosis = examine(recipe, icefall_root)
    if is_json:
        click.echo(diagnosis.as_json())
    elif is_report:
        click.echo(diagnosis.as_markdown())
    else:
        print_diagnosis(diagnosis)
    return diagnosis.exit_status


@click.command(
    cls=Command,
    short_help="Print the shell's completion script.",
    examples=(
        'eval "$(panda-icefall completion bash)"    # in ~/.bashrc; bash 4.4 or later',
        'eval "$(panda-icefall completion zsh)"     # in ~/.zshrc',
        "panda-icefall completion fish > ~/.config/fish/completions/panda-icefall.fish",
    ),
    exit_statuses={0: "The script is printed.", 2: "A wrong argument."},
    needs_torch=False,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete the words of panda-icefall."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    program = ctx.find_root()
    name = program.info_name or "panda-icefall"
    complete = kind(program.command, {}, name, COMPLETE_VARIABLE)
    # Not source(), which starts the shell to ask for its version.
    click.echo(complete.source_template % complete.source_vars())
