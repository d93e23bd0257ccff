"""Processes that torchrun started leave their outcomes in one folder, and the first waits."""

import json
import re
import threading

import pytest

from panda_icefall.runs import PandaOptions, run_recipe
from panda_icefall.runs.records import RunOutcome
from panda_icefall.runs.torchrun import torchrun_rank

PANDA = PandaOptions(use_panda=True)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """This process as the given one of two, by default on the second machine."""

    def as_rank(local_rank, before=2):
        for name, value in {
            "TORCHELASTIC_RUN_ID": "none", "RANK": before + local_rank, "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": 2, "TORCHELASTIC_RESTART_COUNT": 1,
        }.items():  # fmt: skip
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        return torchrun_rank()

    return as_rank


def test_other_processes_have_no_rank_of_torchrun(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "1")  # of a cluster's own
    assert torchrun_rank() is None


def test_the_first_of_a_machine_waits_for_the_others_and_removes_the_folder(started, tmp_path):
    first, second = started(0), started(1)
    assert (first.rank, second.rank) == (2, 3)
    assert (first.is_first, second.is_first) == (True, False)
    assert first.folder == second.folder
    with first.sharing_folder() as folder:
        with second.sharing_folder() as same:
            assert folder == same
            waiting = threading.Thread(target=first.wait)
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
            second.leave()
            waiting.join(5)
            assert not waiting.is_alive()
        assert first.folder.exists()
    assert not any(tmp_path.iterdir())
    second.leave()  # too late is no error


def test_the_first_does_not_wait_for_ever(started):
    first = started(0)
    with first.sharing_folder():
        first.wait(seconds=0.1)


def test_a_folder_of_somebody_else_is_refused(started, monkeypatch):
    first = started(0)
    first.folder.mkdir()
    monkeypatch.setattr("os.getuid", lambda: first.folder.stat().st_uid + 1)
    with (
        pytest.raises(PermissionError, match="belongs to another user"),
        first.sharing_folder(),
    ):
        pass


def test_the_first_reports_for_both(started, recipe, capsys):
    first, second = started(1, before=0), started(0, before=0)
    first, second = second, first
    first.folder.mkdir()
    RunOutcome(rank=1, batches=2, seconds=1.0).write(first.folder)
    second.leave()
    assert run_recipe(recipe.train_py, [], PANDA, is_json=True) == 0
    printed = capsys.readouterr()
    assert re.search(r"training batches per rank\W+4, 2", printed.err)
    ranks = [process["rank"] for process in json.loads(printed.out)["processes"]]
    assert ranks == [0, 1]
    assert not first.folder.exists()


def test_the_others_leave_their_outcome_and_say_nothing(started, recipe, capsys):
    second = started(1, before=0)
    assert run_recipe(recipe.train_py, [], PANDA, is_json=True) == 0
    printed = capsys.readouterr()
    assert "PANDA summary" not in printed.err
    assert printed.out == ""
    assert (second.folder / "1.over").exists()
    (path,) = second.folder.glob("rank*.json")
    assert json.loads(path.read_text())["batches"] == 4
