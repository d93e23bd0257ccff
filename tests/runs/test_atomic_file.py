"""A file is replaced whole, or it and its folder are as they were."""

import os
import stat

import pytest

from panda_icefall.runs import atomic_file
from panda_icefall.runs.atomic_file import replace_file


@pytest.fixture
def umask():
    """Sets the umask to 027 for one test."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("is_synced", [False, True])
@pytest.mark.parametrize("data", [b"", b"\x00\xff\r\n", b"x" * 100_000])
def test_a_file_is_made_and_replaced(tmp_path, data, is_synced):
    path = tmp_path / "a.json"
    replace_file(path, data, is_synced=is_synced)
    assert path.read_bytes() == data
    replace_file(path, b"other", is_synced=is_synced)
    assert path.read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["a.json"]


def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    path = tmp_path / "a.json"
    replace_file(path, b"1")
    assert mode_of(path) == 0o640
    path.chmod(0o600)
    replace_file(path, b"2")
    assert mode_of(path) == 0o640


@pytest.mark.parametrize("mode", [0o755, 0o600, 0o444])
def test_permissions_stay_where_that_is_asked_for(tmp_path, umask, mode):
    path = tmp_path / "train.py"
    path.write_bytes(b"1")
    path.chmod(mode)
    replace_file(path, b"2", keep_mode=True)
    assert (path.read_bytes(), mode_of(path)) == (b"2", mode)


def test_what_a_killed_process_left_is_no_obstacle_and_lends_no_permissions(tmp_path, umask):
    left = tmp_path / ".a.json.partial"
    left.write_bytes(b"much more than the new file will hold")
    left.chmod(0o400)
    replace_file(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert mode_of(tmp_path / "a.json") == 0o640
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    replace_file(link, b"new")
    assert not link.is_symlink()
    assert (link.read_bytes(), target.read_bytes()) == (b"new", b"old")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    def fail(*arguments):
        raise error("the disk is full")

    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic_file.os, step, fail)
    with pytest.raises(error, match="the disk is full"):
        replace_file(path, b"new", is_synced=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    steps, replace = [], os.replace
    monkeypatch.setattr(atomic_file.os, "fsync", lambda handle: steps.append("fsync"))

    def noted(*arguments):
        steps.append("replace")
        replace(*arguments)

    monkeypatch.setattr(atomic_file.os, "replace", noted)
    replace_file(tmp_path / "a", b"1", is_synced=True)
    replace_file(tmp_path / "b", b"1")
    assert steps == ["fsync", "replace", "replace"]


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone/\.a\.json\.partial"):
        replace_file(tmp_path / "gone" / "a.json", b"1")
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        replace_file(tmp_path / "a.json", b"1", keep_mode=True)
    assert os.listdir(tmp_path) == []
