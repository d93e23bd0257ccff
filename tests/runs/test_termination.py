"""SIGTERM ends a run as SIGINT does: readable rows, a summary, and the exit status of a signal."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from panda_icefall.runs.memory.reading import read_last_run
from panda_icefall.runs.termination import Terminated, ended_by

WAIT = (
    "            loss.backward()\n",
    "            Path(params.exp_dir, f'waits-{rank}').touch()\n"
    "            import time\n"
    "            time.sleep(0 if batch_idx < 1 else 300)\n"
    "            loss.backward()\n",
)


def start(recipe, *words):
    recipe.edit(WAIT)
    (recipe.folder / "exp").mkdir()
    root = str(Path(__file__).parents[2])
    asked = ["--use-panda", "1", "--panda-memory-log", "m.jsonl", *map(str, words)]
    return subprocess.Popen(
        [sys.executable, "-m", "panda_icefall", "run", "train.py", *asked],
        cwd=recipe.folder,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def terminate_in_second_batch(recipe, process, ranks=1):
    logs = ["m.jsonl", *(f"m.rank{rank}.jsonl" for rank in range(1, ranks))]
    end = time.monotonic() + 120
    while not all(
        (recipe.folder / log).exists()
        and sum(r["row"] == "phase" for r in read_last_run(recipe.folder / log)) >= 3
        for log in logs
    ):
        assert time.monotonic() < end, process.stderr.read()
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.terminate()
    try:
        error = process.communicate(timeout=100)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return error, [read_last_run(recipe.folder / log) for log in logs]


def test_a_run_ends_with_its_summary_its_rows_and_status_143(recipe):
    process = start(recipe)
    error, (rows,) = terminate_in_second_batch(recipe, process)
    assert process.returncode == 143
    assert "PANDA summary" in error
    assert "Traceback" not in error
    assert (rows[-1]["row"], rows[-1]["reason"]) == ("end", "SIGTERM")
    assert rows[-2]["error"].startswith("Terminated")


def test_children_of_spawn_end_so_too(recipe, port):
    process = start(recipe, "--world-size", 2, "--master-port", port)
    error, logs = terminate_in_second_batch(recipe, process, ranks=2)
    assert process.returncode == 143, error
    assert "PANDA summary" in error
    assert "without leaving an outcome" not in error
    for rows in logs:
        assert (rows[-1]["row"], rows[-1]["reason"]) == ("end", "SIGTERM")


def test_the_handler_is_there_for_the_block_only():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(Terminated) as caught, ended_by(signal.SIGTERM):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_somebody_elses_handler_is_left_alone(monkeypatch):
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    try:
        with ended_by(signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert seen == ["theirs"]


def test_outside_of_the_main_thread_nothing_is_done():
    results = []

    def run():
        with ended_by(signal.SIGTERM):
            results.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert results == [signal.SIG_DFL]


def test_a_forked_worker_dies_of_it_as_without_us():
    with ended_by(signal.SIGTERM):
        child = os.fork()
        if child == 0:
            try:
                time.sleep(60)
            finally:
                os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
