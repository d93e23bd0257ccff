"""One child process of a bounded run: started, bounded in time, stopped with its whole group."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "Deadline",
    "Interrupted",
    "StageFailed",
    "StageOutcome",
    "forwarded_signals",
    "held_signals",
    "run_stage",
]

_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.2
_TAIL_LINES = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The bounded run was told to stop: by a signal, or by its own bound in minutes.

    Attributes:
      exit_status: What a shell expects of a process that ends so.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class StageFailed(Exception):  # noqa: N818 - reported, not raised at the user
    """A child process ended with an error of its own."""


@dataclass(frozen=True)
class Deadline:
    """The moment, by ``time.monotonic``, at which a bounded run has to end; in seconds."""

    at: float
    minutes: float
    set_by: str

    @classmethod
    def after(cls, minutes: float, set_by: str = "bounds.max_minutes") -> "Deadline":
        """The deadline that many minutes from now, as an option or a key of that name set it."""
        return cls(time.monotonic() + 60.0 * minutes, minutes, set_by)

    @property
    def is_over(self) -> bool:
        """Whether the moment has passed."""
        return time.monotonic() > self.at

    def check(self) -> None:
        """Raise ``Interrupted`` once the moment has passed."""
        if self.is_over:
            raise Interrupted(f"{self.set_by}: the limit of {self.minutes:g} minutes was reached")


@dataclass(frozen=True)
class StageOutcome:
    """How a child process ended.

    Attributes:
      exit_status: As its parent sees it; negative where a signal ended it.
      seconds: Wall time.
      tail: The last lines it wrote.
    """

    exit_status: int
    seconds: float
    tail: str

    @property
    def by_signal(self) -> str:
        """The signal that ended it, in brackets; empty where none did."""
        number = _signal_of(self.exit_status)
        return "" if number is None else f" ({number.name})"


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP wait until the enclosed block, a short one, is done.

    Blocking them in this thread is not enough: the system gives them to another one of torch's.
    """
    came: list[int] = []
    previous = {n: signal.signal(n, lambda number, _: came.append(number)) for n in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


@contextlib.contextmanager
def forwarded_signals() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into ``Interrupted`` for the enclosed block."""

    def stop(number: int, _frame: object) -> None:
        raise Interrupted(f"interrupted by {signal.Signals(number).name}", 128 + number)

    previous = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_stage(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    deadline: Deadline,
    on_poll: Callable[[], Any] = lambda: None,
) -> StageOutcome:
    """Run ``command`` in ``folder`` with both of its outputs in ``log``.

    Args:
      command: Program and arguments.
      folder: Its working folder.
      environment: Its whole environment.
      log: File for its output.
      deadline: When to stop it.
      on_poll: Called several times a second while it runs.

    Raises:
      Interrupted: A signal or the deadline came first. The child and its own children have been
        asked to end, and killed where they had not ended within 10 s. Also where another process
        sent the child SIGINT, SIGTERM or SIGHUP, as a scheduler does to all processes of a job.
    """
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        child: subprocess.Popen[bytes] | None = None
        try:
            # Python swallows what a signal raises in its own functions around a fork.
            with held_signals():
                # A session of its own: Ctrl-C reaches this process alone, which stops the group.
                child = subprocess.Popen(
                    list(command),
                    cwd=folder,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
            while True:
                try:
                    status: int | None = child.wait(timeout=_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    deadline.check()
                    on_poll()
        except BaseException:
            if child is not None:
                _stop_group(child)
            raise
    assert status is not None
    number = _signal_of(status)
    if number in _SIGNALS:
        raise Interrupted(f"its process was ended by {number.name}", 128 + number)
    return StageOutcome(status, time.monotonic() - began, _tail(log))


def _end_with_parent() -> None:
    """In the child: be interrupted where the parent is killed and cannot stop it (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _stop_group(child: "subprocess.Popen[bytes]") -> None:
    # SIGINT first: Python raises KeyboardInterrupt from it, so the recipe's logs are closed.
    try:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(timeout=_GRACE_SECONDS)
    except (subprocess.TimeoutExpired, ProcessLookupError, Interrupted):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _signal_of(status: int) -> signal.Signals | None:
    """The signal that a process ended by; a shell, and click, say 128 + N instead of -N."""
    number = -status if status < 0 else status - 128
    try:
        return signal.Signals(number)
    except ValueError:
        return None


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])
