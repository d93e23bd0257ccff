"""The benchmarks' modules lie in scripts/, which is no package that is installed."""

import importlib
import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs a script's main() with words; gives what it wrote where results go."""
    from benchmarks import child, results

    def measure_here(job):
        return child.run(replace(job, cap_bytes=None))

    def run(name, *words):
        module = importlib.import_module(name)
        if hasattr(module, "measure"):
            # In this process, whose memory no cap may limit: processes have tests of their own.
            monkeypatch.setattr(module, "measure", measure_here)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        monkeypatch.setattr(results, "RESULTS", folder)
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        module.main()
        (path,) = folder.glob("*.json")
        return json.loads(path.read_text())

    return run


@pytest.fixture
def checked():
    """The rows of one session's document, which has everything a table and its reader need."""
    from benchmarks import results, tables

    def rows_of(figures, benchmark):
        assert figures["benchmark"] == benchmark
        assert tables.title(figures)
        assert results.cells(figures, tables.COLUMNS[benchmark], tables.KEYS[benchmark])
        (session,) = figures["sessions"]
        assert session["command"].startswith("python scripts/bench_")
        assert str(Path.home()) not in json.dumps(figures)
        assert "/tmp" not in json.dumps(figures)
        assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", session["date"])
        assert {"cpu", "cores", "threads", "torch", "k2", "lane"} <= set(session["machine"])
        return session["rows"]

    return rows_of
