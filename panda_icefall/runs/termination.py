"""SIGTERM, by which clusters end a job, ends a run in order: rows, summary, exit status 143.

Spawned children are told by another signal: torch sends them SIGTERM where one of them has failed,
and they have to die of it at once, though they may be waiting in a collective operation.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["TO_CHILDREN", "Terminated", "ended_by", "ending_children"]

TO_CHILDREN: signal.Signals = getattr(signal, "SIGUSR1", signal.SIGTERM)  # none on Windows
GRACE_SECONDS = 30.0


class Terminated(SystemExit):
    """The process was told to end by SIGTERM; unhandled, it ends with the status 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextlib.contextmanager
def ended_by(number: signal.Signals) -> Iterator[None]:
    """Raise :class:`Terminated` in the block where a signal comes, as SIGINT a KeyboardInterrupt.

    Does nothing where somebody else handles the signal already, or outside of the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() != process:  # a forked worker, which has no run of its own to end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)  # one is enough, while the run ends
        raise Terminated

    signal.signal(number, end)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def ending_children() -> Iterator[None]:
    """Pass a SIGTERM that ends the block on to the processes it started, and wait for them.

    Those that go on for 30 seconds, as in a collective operation with one that has ended, are
    killed.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except Terminated:
        children = [c for c in multiprocessing.active_children() if c not in before]
        for child in children:
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, TO_CHILDREN)
        end = time.monotonic() + GRACE_SECONDS
        for child in children:
            child.join(max(0.0, end - time.monotonic()))
            if child.is_alive():
                child.kill()
                child.join()
        raise
