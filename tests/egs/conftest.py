"""The embedded recipe's modules, data and an experiment."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tones import RECIPE, SMALL_DATA, SMALL_MODEL, run_script


@pytest.fixture
def recipe(monkeypatch):
    """Modules of the recipe by file name, gone again afterwards: their names are common ones."""
    names = [path.stem for path in RECIPE.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(RECIPE))
    loaded = SimpleNamespace(**{name: __import__(name) for name in names})
    yield loaded
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A tiny corpus, made by the script as a user runs it."""
    folder = tmp_path_factory.mktemp("tones") / "data"
    done = run_script(RECIPE / "prepare.py", "--data-dir", folder, *SMALL_DATA)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def trained(data_dir, tmp_path_factory) -> tuple[Path, str]:
    """An experiment of two epochs, and its log."""
    exp_dir = tmp_path_factory.mktemp("exp")
    arguments = ["--data-dir", data_dir, "--exp-dir", exp_dir, "--num-epochs=2", *SMALL_MODEL]
    done = run_script(RECIPE / "train.py", *arguments)
    assert done.returncode == 0, done.stderr
    return exp_dir, done.stderr
