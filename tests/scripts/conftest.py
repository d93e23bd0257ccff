"""The benchmarks' modules lie in scripts/, which is no package that is installed."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs a script's main() with words; gives what it wrote to --json."""
    from benchmarks import child

    def measure_here(job):
        return child.run(replace(job, cap_bytes=None))

    def run(name, *words):
        module = importlib.import_module(name)
        if hasattr(module, "measure"):
            # In this process, whose memory no cap may limit: processes have tests of their own.
            monkeypatch.setattr(
                module, "measure", lambda job: child.run(replace(job, cap_bytes=None))
            )
        path = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, *map(str, words), "--json", str(path)])
        module.main()
        return json.loads(path.read_text())

    return run
