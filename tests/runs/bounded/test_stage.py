"""A child process of a bounded run is timed, logged and stopped together with its children."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from panda_icefall.runs.bounded.stage import (
    Deadline,
    Interrupted,
    forwarded_signals,
    held_signals,
    run_stage,
)

# Starts a child of its own, says both process numbers, and sleeps.
PARENT = """
import subprocess, sys, os
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def run(tmp_path):
    def run(code, minutes=5.0, on_poll=lambda: None):
        return run_stage(
            [sys.executable, "-c", code],
            tmp_path,
            {**os.environ, "GREETING": "hello"},
            tmp_path / "logs" / "out.log",
            Deadline.after(minutes),
            on_poll,
        )

    run.log = tmp_path / "logs" / "out.log"
    run.folder = tmp_path
    return run


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition):
    for _ in range(1200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_output_environment_folder_and_status(run):
    code = (
        "import os, sys; print(os.environ['GREETING'], os.getcwd(), flush=True); "
        "print('oh', file=sys.stderr); sys.exit(3)"
    )
    outcome = run(code)
    assert outcome.exit_status == 3
    assert run.log.read_text().split() == ["hello", str(run.folder), "oh"]
    assert outcome.tail.endswith("oh")
    assert outcome.seconds > 0


def test_only_the_last_lines_are_kept(run):
    assert run("print(*range(100), sep='\\n')").tail.splitlines() == [
        str(n) for n in range(85, 100)
    ]


def test_a_process_killed_by_a_signal_has_a_negative_status(run):
    assert run("import os; os.kill(os.getpid(), 9)").exit_status == -9


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import os; os.kill(os.getpid(), 15)", "SIGTERM"),
        ("import sys; sys.exit(130)", "SIGINT"),  # a shell's way to say so
        ("import sys; sys.exit(143)", "SIGTERM"),
    ],
)
def test_a_process_that_somebody_else_interrupted_is_interrupted(run, code, name):
    with pytest.raises(Interrupted, match=f"its process was ended by {name}") as stop:
        run(code)
    assert stop.value.exit_status == 128 + signal.Signals[name]


@pytest.fixture
def other_thread():
    """Another thread of the process, to which the system may give a signal."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.mark.usefixtures("other_thread")
def test_signals_wait_for_a_block_that_holds_them():
    done = []

    def write():
        with forwarded_signals(), held_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the report")

    with pytest.raises(Interrupted, match="SIGTERM"):
        write()
    assert done == ["the report"]


def test_the_deadline_stops_the_whole_group(run):
    with pytest.raises(
        Interrupted, match=r"bounds\.max_minutes: the limit of 0\.02 minutes was reached"
    ):
        run(PARENT, minutes=0.02)
    processes = [int(word) for word in run.log.read_text().split()[:2]]
    assert len(processes) == 2
    assert wait_until(lambda: not any(map(is_alive, processes)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_whole_group_and_is_named(run, number):
    def send():
        if run.log.exists() and len(run.log.read_text().split()) >= 2 and not sent.is_set():
            sent.set()
            os.kill(os.getpid(), number)

    sent = threading.Event()
    before = signal.getsignal(number)
    with (
        pytest.raises(Interrupted, match=f"interrupted by {number.name}") as stop,
        forwarded_signals(),
    ):
        run(PARENT, on_poll=send)
    assert stop.value.exit_status == 128 + number
    assert signal.getsignal(number) is before
    processes = [int(word) for word in run.log.read_text().split()[:2]]
    assert wait_until(lambda: not any(map(is_alive, processes)))


def test_a_process_that_ignores_the_request_is_killed(run, monkeypatch):
    monkeypatch.setattr("panda_icefall.runs.bounded.stage._GRACE_SECONDS", 0.3)
    code = (
        "import signal, time, os; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    with pytest.raises(Interrupted):
        run(code, minutes=0.02)
    process = int(run.log.read_text().split()[0])
    assert wait_until(lambda: not is_alive(process))


def test_a_second_signal_kills_what_was_slow_to_obey_the_first(run):
    code = (
        "import signal, time, os; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )

    def send_twice():
        if run.log.exists() and run.log.read_text() and not sent.is_set():
            sent.set()
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            os.kill(os.getpid(), signal.SIGINT)

    sent = threading.Event()
    with pytest.raises(Interrupted), forwarded_signals():
        run(code, on_poll=send_twice)
    process = int(run.log.read_text().split()[0])
    assert wait_until(lambda: not is_alive(process))


# As a shell without job control leaves SIGINT to what it starts in the background.
IGNORED = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def start_parent(tmp_path, preparation):
    """A process of its own whose child writes its number, sleeps, and says when interrupted."""
    child = (
        "import os, time\n"
        "try:\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('interrupted', flush=True)"
    )
    parent = preparation + (
        "import os, sys; from pathlib import Path\n"
        "from panda_icefall.runs.bounded.stage import Deadline, forwarded_signals, run_stage\n"
        "with forwarded_signals():\n"
        f"    run_stage([sys.executable, '-c', {child!r}], Path('.'), os.environ, "
        "Path('out.log'), Deadline.after(5))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    started = subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "out.log"
    assert wait_until(lambda: log.exists() and log.read_text().strip())
    return started, int(log.read_text().split()[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
@pytest.mark.parametrize("preparation", ["", IGNORED], ids=["foreground", "background"])
def test_a_child_does_not_outlive_a_parent_that_was_killed(tmp_path, preparation):
    started, child = start_parent(tmp_path, preparation)
    started.kill()
    started.wait()
    assert wait_until(lambda: not is_alive(child))


@pytest.mark.parametrize("preparation", ["", IGNORED], ids=["foreground", "background"])
def test_a_child_is_interrupted_and_not_just_killed(tmp_path, preparation):
    started, child = start_parent(tmp_path, preparation)
    started.terminate()
    started.wait()
    assert (tmp_path / "out.log").read_text().split() == [str(child), "interrupted"]


def test_an_interruption_while_the_child_is_forked_is_not_lost(run, monkeypatch):
    start, started = subprocess.Popen, []

    def popen(*args, **kwargs):
        # As around a fork, where Python swallows what is raised.
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        started.append(start(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(Interrupted), forwarded_signals():
        run("import time; time.sleep(60)")
    assert started[0].poll() is not None
