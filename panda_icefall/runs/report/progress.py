"""What a terminal shows while something takes its time; where there is no terminal, nothing."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from panda_icefall.runs.report import units

__all__ = ["shown_progress", "times_text", "waiting"]


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show what is waited for, on a terminal, for the length of a block."""
    console = Console(stderr=True)
    shown = console.status(text) if console.is_terminal else contextlib.nullcontext()
    with shown:
        yield


@contextlib.contextmanager
def shown_progress(console: Console, text: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Show how far something is, how long it has taken, and about how much longer it takes.

    Args:
      console: Where; its own lines are printed above. Nothing is shown where it is no terminal.
      text: What is done.
      total: How many there are to do; None: unknown.

    Yields:
      A function that takes how many are done, and, where they have changed, the text and how many
      there are; it may be called as often as one likes.
    """
    began = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _COUNT, _TIMES)
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bars:
        task = bars.add_task(text, total=total, count="", times="")

        def show(done: int, now: str = text, of: int | None = total) -> None:
            times = times_text(time.monotonic() - began, done, of)
            count = "" if of is None else f"{done}/{of}"
            bars.update(task, completed=done, description=now, total=of, count=count, times=times)

        yield show


_COUNT = TextColumn("{task.fields[count]}")
_TIMES = TextColumn("{task.fields[times]}")


def times_text(spent: float, done: int, total: int | None) -> str:
    """The seconds spent, and those left if each of what remains takes as long as those done."""
    if not total or not done:
        return units.duration(spent)
    return f"{units.duration(spent)}, about {units.duration(spent / done * (total - done))} left"
