"""The two commands: 10,000 examples, and the table of planted bugs."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from mutants import Mutation

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_examples_are_run_in_processes_and_written(tmp_path):
    path = tmp_path / "result.json"
    words = ["--examples", "9", "--jobs", "2", "--seed", "3", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "run_properties.py"), *words],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 examples of 9 properties, seed 3" in done.stdout
    result = json.loads(path.read_text())
    assert (result["examples"], result["mismatches"], result["seed"]) == (9, 0, 3)
    assert len(result["properties"]) == 9


@pytest.mark.parametrize("name", ["examples", "jobs", "piece"])
def test_numbers_below_one_are_refused(name):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "run_properties.py"), f"--{name}", "0"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"--{name}: got 0, expected at least 1" in done.stderr


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_did(tmp_path):
    path = tmp_path / "result.json"
    words = ["--examples", "4000", "--piece", "1", "--jobs", "1", "--json", str(path)]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "run_properties.py"), *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines = (line for line in process.stdout if " of 4000  " in line)
    next(lines), next(lines)  # when it says the second piece, the first is written
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 1 <= json.loads(path.read_text())["examples"] < 4000


@pytest.fixture
def table(monkeypatch, capsys):
    """Runs scripts/mutations.py on some bugs; gives its exit status and what it printed."""
    spec = importlib.util.spec_from_file_location("table_of_bugs", SCRIPTS / "mutations.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(script)

    def run(*bugs):
        monkeypatch.setattr(mutants, "MUTATIONS", bugs)
        monkeypatch.setattr(sys, "argv", ["mutations.py", "--examples", "20"])
        return script.main(), capsys.readouterr().out

    return run


def gate():
    assert wrong == 0


wrong = 0


def test_a_caught_bug_is_a_line_of_the_table(table):
    bug = Mutation("mine", "here", lambda patch: patch.setitem(globals(), "wrong", 1), "gate", gate)
    status, text = table(bug)
    assert status == 0
    assert "| mine | `here` | gate | 1 |" in text
    assert "1 of 1 caught; survive: none" in text


def test_a_bug_that_survives_is_an_error(table):
    status, text = table(Mutation("mine", "here", lambda patch: None, "gate", gate))
    assert status == 1
    assert "| mine | `here` | NOTHING |" in text
    assert "survive: ['mine']" in text


def test_a_gate_that_fails_without_a_bug_is_an_error(table, monkeypatch):
    monkeypatch.setitem(globals(), "wrong", 1)
    status, text = table(Mutation("mine", "here", lambda patch: None, "gate", gate))
    assert status == 1
    assert "fails without a bug: gate: AssertionError" in text


def test_an_error_that_is_no_assertion_catches_nothing():
    def plant(patch):
        patch.setattr("panda_icefall.normalizer.tile_loop.forward", None)

    found = mutants.verdict(Mutation("mine", "here", plant, "full lattice"), examples=3)
    assert not found.is_caught
    assert "TypeError" in found.text
