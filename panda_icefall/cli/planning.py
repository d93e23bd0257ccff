"""``plan``: what the losses of a recipe will need, before anything runs."""

import json
import math
from pathlib import Path
from typing import Any

import click

from panda_icefall.cli.command import Command
from panda_icefall.cli.paths import FILE_TO_READ, FILE_TO_WRITE, GIVEN, RUN_TO_READ

__all__ = ["plan"]


class Finite(click.FloatRange):
    """A number in a range, and neither infinite nor nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"got {value}, expected a finite number", param, ctx)
        return number


POSITIVE = Finite(min=0, min_open=True)

_WIDTH = "Default: the recipe's, or 512."
# Options that take the place of a recipe's own defaults, by their names there.
_SIZES = (
    click.option(
        "--vocab",
        type=click.IntRange(min=1),
        help="Classes C, blank included; default: the recipe's.",
    ),
    click.option("--joiner-dim", type=click.IntRange(min=1), help=_WIDTH),
    click.option("--encoder-dim", type=click.IntRange(min=1), help=_WIDTH),
    click.option("--decoder-dim", type=click.IntRange(min=1), help=_WIDTH),
    click.option("--prune-range", type=click.IntRange(min=2), help="Default: the recipe's, or 5."),
    click.option(
        "--dtype",
        type=click.Choice(["fp32", "fp16", "bf16"]),
        help="Default: the recipe's, or fp32.",
    ),
    click.option(
        "--frame-rate",
        type=POSITIVE,
        help="Frames in a second after subsampling; default: the recipe's, or 25.",
    ),
    click.option("--symbol-rate", type=POSITIVE, help="Symbols in a second; default: 4."),
    click.option("--max-duration", type=POSITIVE, help="Default: the recipe's, or 200."),
    click.option("--num-buckets", type=click.IntRange(min=1), help="Default: the recipe's, or 30."),
    click.option(
        "--utterance", type=POSITIVE, help="Seconds of each, where there are no --cuts; default: 8."
    ),
)


def _sized(function: Any) -> Any:
    for option in reversed(_SIZES):
        function = option(function)
    return function


@click.command(
    cls=Command,
    short_help="Calculate the memory of a recipe's losses; nothing is run.",
    examples=(
        "panda-icefall plan egs/aishell/ASR/zipformer --gpu-mem 32GiB",
        "panda-icefall plan --vocab 5537 --gpu-mem 24GiB --max-duration 600 --dtype fp16",
        "panda-icefall plan zipformer --gpu-mem 16GiB --from-run zipformer/exp \\",
        "    --cuts data/fbank/aishell_cuts_train.jsonl.gz",
    ),
    exit_statuses={0: "The plan is printed.", 2: "A wrong argument, or a file that tells nothing."},
)
@click.argument("recipe", metavar="[RECIPE_DIR]", required=False, type=GIVEN)
@click.option("--gpu-mem", required=True, help="Memory of the GPU, as 32GiB.")
@_sized
@click.option(
    "--cuts", type=FILE_TO_READ, help="Training cuts, *.jsonl.gz: finds their worst batch."
)
@click.option(
    "--shortest",
    type=Finite(min=0),
    default=1.0,
    show_default=True,
    help="The recipe leaves out cuts of fewer seconds.",
)
@click.option(
    "--longest",
    type=POSITIVE,
    default=20.0,
    show_default=True,
    help="The recipe leaves out cuts of more seconds.",
)
@click.option(
    "--from-run",
    type=RUN_TO_READ,
    help="Folder of a run with a memory log: the plan is then one of the whole step.",
)
@click.option(
    "--reserve",
    default="1.5GiB",
    show_default=True,
    help="Kept free: CUDA itself, and what the allocator cannot use.",
)
@click.option("--figure", type=FILE_TO_WRITE, help="Also draw the plan as a PNG.")
@click.option("--json", "is_json", is_flag=True, help="Print the plan as one JSON document.")
def plan(
    recipe: Path | None,
    gpu_mem: str,
    reserve: str,
    cuts: Path | None,
    shortest: float,
    longest: float,
    from_run: Path | None,
    figure: Path | None,
    is_json: bool,
    **sizes: Any,
) -> None:
    """Say what the transducer losses need, dense and routed, and how long a batch may be.

    RECIPE_DIR's own defaults are read from its files; options take their place. Nothing is run.
    """
    from rich.console import Console

    from panda_icefall.runs import UsageError
    from panda_icefall.runs.planning.plan import MOST_EPOCHS, make_plan
    from panda_icefall.runs.planning.request import gather_inputs
    from panda_icefall.runs.planning.tables import print_plan
    from panda_icefall.runs.report.console import open_console
    from panda_icefall.runs.report.progress import shown_progress, waiting

    where = open_console()
    with shown_progress(where, "reading, in percent", None if cuts is None else 100) as show:
        inputs = gather_inputs(
            recipe,
            {name.replace("_", "-"): value for name, value in sizes.items()},
            gpu_mem=gpu_mem,
            reserve=reserve,
            cuts=cuts,
            shortest=shortest,
            longest=longest,
            from_run=from_run,
            on_percent=show,
        )
    with shown_progress(where, "planning", MOST_EPOCHS) as show:
        try:
            found = make_plan(inputs, show)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if figure is not None:
        from panda_icefall.runs.planning.figure import write_figure

        with waiting("drawing"):
            write_figure(found, figure)
    if is_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        print_plan(found, Console())
