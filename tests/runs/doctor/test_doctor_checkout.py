"""icefall checkouts: clean, dirty, copied without git, not icefall, not importable."""

import subprocess
import sys

import pytest

from panda_icefall.runs.doctor.imports import (
    examine_checkout,
    examine_icefall_import,
    find_root,
    imported_root,
)


def git(folder, *words):
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path):
    """A folder with an ``icefall`` package and one recipe, without git."""
    root = tmp_path.resolve() / "checkout"
    (root / "icefall").mkdir(parents=True)
    (root / "icefall" / "__init__.py").touch()
    (root / "egs/aishell/ASR/zipformer").mkdir(parents=True)
    (root / "egs/aishell/ASR/zipformer/train.py").touch()
    return root


@pytest.fixture
def clone(copy, monkeypatch):
    """The same as a git repository with one commit."""
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    git(copy, "init", "--quiet")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "--message", "all")
    return copy


def test_a_clean_clone_is_named_by_its_commit(clone):
    (clone / "untracked.txt").touch()
    finding = examine_checkout(clone)
    assert finding.level == "ok"
    assert f"commit {git(clone, 'rev-parse', 'HEAD')} of 20" in finding.text
    assert f"clean, at {clone}" in finding.text


def test_a_changed_tracked_file_makes_it_dirty(clone):
    (clone / "icefall/__init__.py").write_text("changed = 1\n")
    finding = examine_checkout(clone)
    assert finding.level == "warning"
    assert "dirty: 1 tracked file(s) changed, as icefall/__init__.py" in finding.text
    assert f"git -C {clone} diff" in finding.advice


def test_another_repository_that_git_was_told_of_is_not_asked(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert examine_checkout(clone).level == "ok"


def test_a_copy_without_git_is_a_warning(copy):
    finding = examine_checkout(copy)
    assert finding.level == "warning"
    assert f"{copy}, at an unknown commit: git: fatal: not a git repository" in finding.text


def test_a_copy_inside_another_repository_has_no_commit_of_its_own(copy):
    git(copy.parent, "init", "--quiet")
    finding = examine_checkout(copy)
    assert finding.level == "warning"
    assert f"it is no repository of its own, but part of {copy.parent}" in finding.text


def test_a_machine_without_git_is_a_warning(clone, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = examine_checkout(clone)
    assert finding.level == "warning"
    assert "No such file or directory: 'git'" in finding.text


def test_an_icefall_folder_that_is_none_is_a_problem(tmp_path):
    finding = examine_checkout(tmp_path)
    assert finding.level == "problem"
    assert f"{tmp_path} has no icefall/__init__.py" in finding.text
    assert "--icefall-root" in finding.advice
    assert examine_icefall_import(tmp_path, is_needed=True) == []


def test_no_icefall_at_all_is_a_warning():
    assert examine_checkout(None).level == "warning"
    assert examine_icefall_import(None, is_needed=True) == []


def test_the_root_is_the_named_one_else_that_around_the_recipe(copy, tmp_path):
    recipe = copy / "egs/aishell/ASR/zipformer"
    assert find_root(tmp_path, recipe) == tmp_path.resolve()
    assert find_root(None, recipe) == copy
    assert find_root(None, recipe / "train.py") == copy


@pytest.fixture
def importable(copy, monkeypatch):
    """`copy`, first on the path, in a process that has imported no other icefall."""
    monkeypatch.delitem(sys.modules, "icefall", raising=False)
    monkeypatch.syspath_prepend(str(copy))
    return copy


def test_else_the_root_is_the_importable_one(importable, tmp_path):
    copy = importable
    assert imported_root() == copy
    assert find_root(None, None) == copy
    assert find_root(None, tmp_path / "elsewhere" / "train.py") == copy


def test_an_importable_root_is_fine_and_another_one_a_warning(importable, tmp_path):
    copy = importable
    (finding,) = examine_icefall_import(copy, is_needed=True)
    assert finding.level == "ok"
    other = tmp_path / "other"
    (other / "icefall").mkdir(parents=True)
    (other / "icefall" / "__init__.py").touch()
    (finding,) = examine_icefall_import(other, is_needed=True)
    assert finding.level == "warning"
    assert f"finds {copy}, not {other}" in finding.text


@pytest.mark.parametrize(("is_needed", "level"), [(True, "problem"), (False, "warning")])
def test_a_root_outside_pythonpath_is_a_problem_where_a_recipe_needs_it(
    copy, monkeypatch, is_needed, level
):
    monkeypatch.setattr("panda_icefall.runs.doctor.imports.imported_root", lambda: None)
    (finding,) = examine_icefall_import(copy, is_needed)
    assert finding.level == level
    assert finding.advice == f"export PYTHONPATH={copy}:$PYTHONPATH"
