"""``panda-icefall doctor`` as a whole, on what is really installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import panda_icefall

REPOSITORY = Path(panda_icefall.__file__).parents[1]


@pytest.fixture
def doctor(tmp_path):
    """Runs the command; gives its exit status and its findings by subject."""

    def run(*words, path=(), expect_json=True):
        environment = {k: v for k, v in os.environ.items() if k != "ICEFALL_ROOT"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (REPOSITORY, *path)))
        done = subprocess.run(
            [sys.executable, "-m", "panda_icefall", "doctor", *map(str, words)]
            + ["--json"] * expect_json,
            cwd=tmp_path,
            env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if not expect_json:
            return done.returncode, done.stdout
        document = json.loads(done.stdout)
        by_subject = {finding["subject"]: finding for finding in document["findings"]}
        return done.returncode, document, by_subject

    return run


def test_the_installed_packages_have_no_problem(doctor):
    status, document, found = doctor()
    assert status == 0
    assert document["problems"] == 0
    assert found["torch"]["text"].startswith(str(torch.__version__))
    assert "rnnt_loss_pruned" in found["patched by --use-panda 1"]["text"]
    assert found["icefall"]["level"] == "warning"


def test_the_report_is_lines_on_stdout_with_the_counts_at_the_end(doctor):
    status, text = doctor(expect_json=False)
    lines = text.splitlines()
    assert status == 0
    assert lines[0].startswith("ok       python: ")
    assert lines[-1].startswith("no problems, ")


def test_the_embedded_recipe_has_no_problem(doctor):
    status, _, found = doctor(REPOSITORY / "egs/tones/ASR/pruned_transducer")
    assert status == 0
    assert "rnnt_loss_pruned (model.py:" in found["pruned loss"]["text"]
    assert "icefall" not in found  # it imports none


def test_a_wrong_icefall_root_is_a_problem_and_status_one(doctor, tmp_path):
    status, document, found = doctor("--icefall-root", tmp_path)
    assert (status, document["problems"]) == (1, 1)
    assert "has no icefall/__init__.py" in found["icefall"]["text"]


@pytest.mark.k2
def test_the_real_k2_fits_its_torch_and_would_be_patched(doctor):
    from importlib.metadata import version

    status, _, found = doctor()
    assert status == 0
    assert found["k2"]["level"] == "ok"
    assert found["k2"]["text"].startswith(f"{version('k2')}, ")
    assert found["k2 and torch"]["level"] == "ok"
    patched = found["patched by --use-panda 1"]["text"].split(", ")
    assert {"k2.do_rnnt_pruning", "k2.rnnt_loss_pruned"} <= set(patched)


@pytest.mark.k2
@pytest.mark.icefall
@pytest.mark.parametrize("name", ["zipformer", "zipformer/train_bbpe.py"])
def test_the_aishell_recipe_has_no_problem(doctor, name):
    root = Path(os.environ["ICEFALL_ROOT"]).resolve()
    status, document, found = doctor(root / "egs/aishell/ASR" / name, path=[root])
    problems = [f for f in document["findings"] if f["level"] == "problem"]
    assert (status, problems) == (0, [])
    assert found["icefall"]["text"].startswith("commit ")
    patched = found["patched by --use-panda 1"]["text"].split(", ")
    assert {"k2.do_rnnt_pruning", "k2.rnnt_loss_pruned"} <= set(patched)
    assert "k2.rnnt_loss_pruned (model.py:" in found["pruned loss"]["text"]


@pytest.mark.k2
@pytest.mark.icefall
def test_a_ctc_recipe_and_a_path_without_icefall_are_problems(doctor):
    root = Path(os.environ["ICEFALL_ROOT"]).resolve()
    status, _, found = doctor(root / "egs/aishell/ASR/conformer_ctc")
    assert status == 1
    assert "k2.ctc_loss (train.py:" in found["transducer loss"]["text"]
    assert found["import icefall"]["level"] == "problem"
    assert found["import icefall"]["advice"] == f"export PYTHONPATH={root}:$PYTHONPATH"
