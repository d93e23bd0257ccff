"""SIGTERM, by which clusters end a job, ends a run in order: rows, summary, exit status 143."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

__all__ = ["Terminated", "ended_by_sigterm", "ending_children"]

GRACE_SECONDS = 30.0


class Terminated(SystemExit):
    """The process was told to end by SIGTERM; unhandled, it ends with the status 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` in the block where SIGTERM comes, as SIGINT a KeyboardInterrupt.

    Does nothing where somebody else handles SIGTERM already, or outside of the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() != process:  # a forked worker, which has no run of its own to end
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough, while the run ends
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
        children = set(multiprocessing.active_children()) - before
        for child in children:
            child.terminate()
        end = time.monotonic() + GRACE_SECONDS
        for child in children:
            child.join(max(0.0, end - time.monotonic()))
            if child.is_alive():
                child.kill()
                child.join()
        raise
