"""The ``panda-icefall`` command: parse, call one function below, print.

Nothing but click is imported to parse a command line or to show its help. A command's own imports
stand inside it, behind the check that torch is there.
"""

import sys

import click

import panda_icefall
from panda_icefall.cli import bounded, fitting, machine, patch, planning, recipes
from panda_icefall.cli.command import EXIT_INTERRUPTED, INTERRUPTED, Group

__all__ = ["main"]


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples=(
        "panda-icefall doctor zipformer",
        "panda-icefall plan zipformer --gpu-mem 24GiB",
        "panda-icefall check zipformer/train.py --exp-dir check",
        "panda-icefall run zipformer/train.py --use-panda 1",
    ),
    exit_statuses={
        0: "All is well.",
        1: "It was done, and what it found is not well: a contract violated, no batch that fits.",
        2: "It cannot be done as asked; the message says why.",
        **INTERRUPTED,
        "other": "Of run, the recipe's own.",
    },
)
@click.version_option(panda_icefall.__version__, prog_name="panda-icefall")
def cli() -> None:
    """Train icefall transducers without the [B, T, s_range, C] logits.

    A loss is dense where it is computed from these logits, and routed where panda-icefall
    computes the same loss in tiles.
    """


for command in (
    machine.doctor,
    planning.plan,
    fitting.fit,
    recipes.check,
    recipes.run,
    bounded.report,
    bounded.bounded,
    bounded.synth,
    patch.patch,
    machine.completion,
):
    cli.add_command(command)


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
    except Exception as error:
        _exit_if_named(error)
        raise


def _exit_if_named(error: Exception) -> None:
    """End with one line where the error is one of this project's, whose classes need torch."""
    if "panda_icefall.routing.errors" not in sys.modules:
        return
    from panda_icefall.routing import PandaError
    from panda_icefall.runs.errors import exit_with

    if isinstance(error, PandaError):
        exit_with(error)
