"""``fit``: the largest --max-duration of a recipe, by running its worst batches."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from panda_icefall.cli.command import INTERRUPTED, RECIPE_COMMAND, Command
from panda_icefall.cli.paths import AS_TYPED, FOLDER_TO_WRITE

if TYPE_CHECKING:
    from panda_icefall.runs.fitting.request import FitRequest

__all__ = ["fit"]


@click.command(
    cls=Command,
    short_help="Find the largest --max-duration that fits this device.",
    context_settings=RECIPE_COMMAND,
    examples=(
        "panda-icefall fit zipformer/train.py --world-size 1 --use-fp16 1",
        "panda-icefall fit --limit-mib 20000 --max-trials 6 zipformer/train.py --use-panda 1",
        "panda-icefall fit --device cpu --limit-mib 600 --json zipformer/train.py",
    ),
    exit_statuses={
        0: "Each arm has a --max-duration that fits.",
        1: "One has none, the recipe failed, or the search ended early; fit.json has what was "
        "measured.",
        2: "It cannot be run as asked; the message says why.",
        **INTERRUPTED,
        "128 + N": "Ended by signal N.",
    },
)
@click.option(
    "--device", type=click.Choice(["cuda", "cpu"]), help="Default: cuda where torch sees a GPU."
)
@click.option(
    "--limit-mib",
    type=float,
    help="What a process may hold: on CUDA in all, default what the GPU has; on a CPU above what "
    "it holds before its first batch, needed there.",
)
@click.option(
    "--max-trials",
    "most_trials",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="For each arm; those of an earlier fit in the folder are not counted.",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.05,
    show_default=True,
    help="Stop when what fits and what does not are within this share of each other.",
)
@click.option(
    "--scan-batches",
    type=click.IntRange(min=1),
    help="Look for the worst among so many batches; default: the whole epoch.",
)
@click.option(
    "--max-minutes",
    type=float,
    default=240.0,
    show_default=True,
    help="End the search, with what was measured, after so many.",
)
@click.option(
    "--out",
    type=FOLDER_TO_WRITE,
    help="New folder for fit.json and logs, or that of an earlier fit with the same arguments, "
    "within whose bounds the search begins; default: a new one, panda-fit[-NUMBER].",
)
@click.option("--json", "is_json", is_flag=True, help="Print fit.json in place of the table.")
@click.argument("train_py", metavar="TRAIN_PY", type=AS_TYPED)
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def fit(
    train_py: str, arguments: tuple[str, ...], is_json: bool, **options: Any
) -> Callable[[], int]:
    """Find the largest --max-duration of TRAIN_PY that fits this device, dense and routed.

    Each trial trains on the batches of the recipe's own sampler that need most memory, in a process
    of its own. ARGS are those of training; --max-duration is the first one tried, --use-panda 0 or
    1 leaves the other arm out. Options of fit go before TRAIN_PY.
    """
    from panda_icefall.runs.fitting.request import check_fit

    request = check_fit(train_py, arguments, **options)
    return functools.partial(_run_fit, request, is_json)


def _run_fit(request: "FitRequest", is_json: bool) -> int:
    from rich.console import Console

    from panda_icefall.runs.fitting.fit import run_fit
    from panda_icefall.runs.fitting.record import REPORT
    from panda_icefall.runs.fitting.tables import print_fit

    record, status = run_fit(request)
    if is_json:
        click.echo((request.out / REPORT).read_text(encoding="utf-8"))
    else:
        print_fit(record, request, Console())
    return status
