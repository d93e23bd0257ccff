"""``bounded``, ``synth`` and ``report``: a bounded run, data to make it with, runs compared."""

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from panda_icefall.cli.command import Command
from panda_icefall.cli.paths import AS_TYPED, FOLDER_TO_WRITE, GIVEN

if TYPE_CHECKING:
    from panda_icefall.runs.bounded.request import Request

__all__ = ["bounded", "report", "synth"]

# The catalog of corpora imports torch, and help must not; tests/test_cli.py compares the two.
CORPUS_NAMES = ("aishell", "librispeech", "wenetspeech")
LANG_NAMES = ("bbpe", "bpe", "char")


@click.command(
    cls=Command,
    short_help="Make a data folder to try the recipes on.",
    examples=(
        "panda-icefall synth aishell --out data --icefall-root /path/to/icefall",
        "panda-icefall synth aishell --lang bbpe --vocab 500 --out data --icefall-root icefall",
    ),
    exit_statuses={0: "The folder is written.", 2: "It is not; the message says why."},
)
@click.argument("corpus", type=click.Choice(CORPUS_NAMES))
@click.option("--out", type=FOLDER_TO_WRITE, required=True, help="Folder to write.")
@click.option(
    "--utterances",
    type=click.IntRange(min=1),
    default=160,
    show_default=True,
    help="Of the training set.",
)
@click.option(
    "--lang",
    type=click.Choice(LANG_NAMES),
    help="Kind of vocabulary; default: the corpus' usual one.",
)
@click.option("--vocab", type=click.IntRange(min=1), help="Classes; default: the published ones.")
@click.option(
    "--seed", type=int, default=42, show_default=True, help="The same one makes the same data."
)
@click.option(
    "--icefall-root",
    type=GIVEN,
    envvar="ICEFALL_ROOT",
    show_envvar=True,
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
    from panda_icefall.runs import UsageError
    from panda_icefall.runs.data.catalog import data_arguments, find_corpus
    from panda_icefall.runs.data.synthetic import synth_data
    from panda_icefall.runs.report.progress import waiting

    try:
        with waiting(f"making {utterances} utterances and their vocabulary"):
            synth_data(corpus, out, icefall_root, utterances, lang, vocab, seed)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(str(error)) from error
    layout, root = find_corpus(corpus), icefall_root.expanduser().resolve()
    kind = lang or next(iter(layout.langs))
    data = data_arguments(corpus, kind, out, vocab)
    # Not the recipe's own exp-dir, which may hold a training that somebody wants to keep.
    exp_dir = f"{out.expanduser().absolute()}-exp"
    words = [
        *(layout.lang(kind).train_py, *data, "--exp-dir", exp_dir),
        *"--enable-musan 0 --num-buckets 2 --max-duration 40".split(),
        *"--use-panda 1 --panda-max-batches 10".split(),
    ]
    click.echo(f"wrote {out}")
    click.echo("train on it, for 10 batches:")
    click.echo(f"  cd {shlex.quote(str(root / layout.folder))}")
    click.echo(f"  export PYTHONPATH={shlex.quote(str(root))}")
    click.echo(f"  panda-icefall run {shlex.join(words)}")


@click.command(
    cls=Command,
    short_help="Prove it on a recipe: some batches dense and routed.",
    examples=(
        "panda-icefall bounded aishell/zipformer --icefall-root /path/to/icefall --synthetic",
        "panda-icefall bounded aishell/zipformer/full --data data --icefall-root /path/to/icefall",
        "panda-icefall bounded --list",
    ),
    exit_statuses={
        0: "Everything holds.",
        1: "Something does not, or the run is partial.",
        2: "It cannot be run as asked.",
        "128 + N": "Ended by signal N.",
    },
)
@click.argument("config", metavar="CONFIG", type=GIVEN)
@click.option(
    "--icefall-root",
    type=GIVEN,
    envvar="ICEFALL_ROOT",
    show_envvar=True,
    required=True,
    help="An icefall checkout; only read.",
)
@click.option("--data", type=GIVEN, help="The recipe's data folder.")
@click.option("--synthetic", is_flag=True, help="Make data in its layout instead.")
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    help="Default: cuda where torch sees a GPU.",
)
@click.option(
    "--out",
    type=FOLDER_TO_WRITE,
    help="New folder for logs and report, or that of an unfinished run, which is continued; "
    "default: a new one, panda-bounded/RECIPE-FORM[-NUMBER].",
)
@click.option(
    "--max-minutes",
    type=float,
    help="In place of the configuration's bounds.max_minutes.",
)
@click.option("--json", "is_json", is_flag=True, help="Print report.json to stdout at the end.")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, is_asked: _list_configs(ctx) if is_asked else None,
    help="List the configurations that come with panda-icefall.",
)
def bounded(config: Path, icefall_root: Path, is_json: bool, **options: Any) -> Callable[[], int]:
    """Train a recipe dense and routed for a few batches, compare, and write a report.

    CONFIG is a YAML file, or CORPUS/RECIPE or CORPUS/RECIPE/FORM of those that come with
    panda-icefall: FORM is full (a GPU, the published arguments) or cpu (minutes on two cores), by
    default that of the device.
    """
    from panda_icefall.runs.bounded.request import check_request
    from panda_icefall.runs.report.progress import waiting

    with waiting("asking the recipe whether it takes these options"):
        request = check_request(config, icefall_root, **options)
    return functools.partial(_run_bounded, request, is_json)


@click.command(
    cls=Command,
    short_help="Compare runs in one page: loss, memory, time.",
    examples=(
        "panda-icefall report zipformer/exp-dense zipformer/exp-panda --out report",
        "panda-icefall report panda-bounded/aishell-zipformer-cpu",
    ),
    exit_statuses={
        0: "The report is written.",
        1: "It is written, without what could not be read; stderr and the report name that.",
        2: "Nothing could be read, or the report not be written; the message says why.",
    },
)
@click.argument("folders", metavar="EXP_DIR...", nargs=-1, required=True, type=AS_TYPED)
@click.option(
    "--out",
    type=FOLDER_TO_WRITE,
    default=Path("panda-report"),
    show_default=True,
    help="Folder for report.html, report.md, report.json and figures.",
)
@click.option("--json", "is_json", is_flag=True, help="Print report.json to stdout as well.")
def report(folders: tuple[str, ...], out: Path, is_json: bool) -> int:
    """Compare runs by their memory logs: loss, memory and time, in one page.

    EXP_DIR is a folder in which --panda-memory-log wrote a log, the folder of a bounded run, or the
    --exp-dir of a check. The first run that trained is the one that the others are compared with.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from panda_icefall.runs import UsageError
    from panda_icefall.runs.comparison import read_runs
    from panda_icefall.runs.report.comparison import rows_of, write_comparison
    from panda_icefall.runs.report.progress import waiting

    if out.resolve() in [Path(folder).resolve() for folder in folders]:
        raise UsageError(
            f"--out: got {out}, one of EXP_DIR, which may have a report of its own; expected "
            "another folder"
        )
    problems: list[str] = []
    with waiting("reading and drawing"):
        runs = read_runs([Path(folder) for folder in folders], problems.append)
        try:
            path = write_comparison(runs, out, problems) if runs else None
        except OSError as error:
            raise UsageError(f"--out: cannot write {out}: {error.strerror}") from error
    for problem in problems:
        click.echo(f"panda-icefall: {problem}", err=True)
    if path is None:
        return 2
    status = 1 if problems else 0
    if is_json:
        click.echo((out / "report.json").read_text(encoding="utf-8"))
        return status
    named, *figures = rows_of(runs)
    table = Table(*(Column(name, overflow="fold") for name in named))
    for row in figures:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"report: {path}", markup=False, soft_wrap=True)
    return status


def _list_configs(ctx: click.Context) -> None:
    from panda_icefall.shipped import config_names

    for name in config_names():
        click.echo(name)
    ctx.exit()


def _run_bounded(request: "Request", is_json: bool) -> int:
    from panda_icefall.runs.bounded.run import run_bounded

    status = run_bounded(request)
    if is_json:
        click.echo((request.out / "report.json").read_text(encoding="utf-8"))
    return status
