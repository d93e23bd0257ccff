"""A file where a folder is expected, and the reverse: said in one line, before any work."""

import pytest
from locked import lock

from panda_icefall.cli import cli
from panda_icefall.cli.paths import GivenPath

PLAN = ("plan", "--gpu-mem", "8GiB", "--vocab", "500")
SYNTH = ("synth", "aishell", "--icefall-root", ".")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.Popen", None)  # nothing is started
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "train.py").write_text('if __name__ == "__main__":\n    print("trained")\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "--out", "file", "train.py"), "--out: got file, a file; expected a folder"),
        (("fit", "--out", "file/x", "train.py"), "--out: got file/x, below the file {}/file; "),
        (("report", "folder", "--out", "file"), "--out: got file, a file; expected a folder"),
        (("report", "folder", "--out", "file/a/b"), "--out: got file/a/b, below the file {}/file"),
        (("bounded", "aishell/zipformer", "--icefall-root", ".", "--out", "file"),
         "--out: got file, a file; expected a folder"),
        ((*SYNTH, "--out", "file"), "--out: got file, a file; expected a folder"),
        ((*SYNTH, "--out", "file/x"), "--out: got file/x, below the file {}/file; expected a "),
        (("check", "train.py", "--exp-dir", "file"), "--exp-dir: got file, a file; expected a "),
        (("run", "train.py", "--use-panda", "1", "--exp-dir=file"), "--exp-dir: got file, a file"),
        (("run", "train.py", "--use-panda", "1", "--panda-memory-log", "file/m.jsonl"),
         "--panda-memory-log: cannot write {}/file/m.jsonl, below a file; expected a file"),
        ((*PLAN, "--cuts", "folder"), "--cuts: got folder, a folder; expected a file"),
        ((*PLAN, "--cuts", "~nobody-of-that-name/x"),
         "--cuts: got ~nobody-of-that-name/x, Could not determine home directory"),
        ((*PLAN, "--cuts", "x" * 300), f"--cuts: got {'x' * 300}, File name too long; expected a"),
        ((*PLAN, "--cuts", "gone"), "--cuts: got gone, which does not exist; expected a file"),
        ((*PLAN, "--from-run", "gone"),
         "--from-run: got gone, which does not exist; expected a folder or file"),
        ((*PLAN, "--figure", "folder"), "--figure: got folder, a folder; expected a file"),
        ((*PLAN, "--figure", "file/x.png"), "--figure: got file/x.png, below the file {}/file; "),
    ],
)  # fmt: skip
def test_a_path_of_the_wrong_kind_is_one_line_and_status_two(command, here, words, message):
    status, text, error = command(*words)
    assert (status, text) == (2, "")
    assert error.startswith(f"panda-icefall: {message.format(here)}")
    assert error.count("\n") == 1
    assert (here / "file").read_text() == "mine"
    assert sorted(path.name for path in here.rglob("*")) == ["file", "folder", "train.py"]


@pytest.mark.parametrize(
    ("expected", "is_read", "words"),
    [
        ("folder", False, ["folder", "new", "new/deep"]),
        ("file", False, ["file", "new", "new/deep", "folder/new"]),
        ("file", True, ["file"]),
        ("folder or file", True, ["file", "folder"]),
    ],
)
def test_what_is_there_or_can_be_made_is_taken(here, expected, is_read, words):
    kind = GivenPath(expected, is_read=is_read)
    assert [str(kind.convert(word, None, None)) for word in words] == words


def test_the_home_folder_is_known(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert GivenPath("file", is_read=True).convert("~/file", None, None) == here / "file"


def test_everything_that_is_written_is_looked_at():
    """An option that names a file or folder to write has one of the kinds above."""
    written = {
        (name, option.opts[0]): option.type
        for name, found in cli.commands.items()
        for option in getattr(found, "params", ())
        if option.opts[0] in ("--out", "--figure")
    }
    assert len(written) == 5
    assert all(isinstance(kind, GivenPath) for kind in written.values())


@pytest.fixture
def locked(here, monkeypatch):
    """A folder that nobody may look into, root neither."""
    folder = here / "locked"
    folder.mkdir()
    for name in ("train.py", "memory.jsonl"):
        (folder / name).write_text('{"row": "header"}\n')

    return lock(monkeypatch, folder)


LOCKED_WORDS = {
    "run": (("run", "locked/train.py", "--use-panda", "1"), "TRAIN_PY"),
    "check": (("check", "locked/train.py"), "TRAIN_PY"),
    "fit": (("fit", "--device", "cpu", "--limit-mib", "100", "locked/train.py"), "TRAIN_PY"),
    "plan": (("plan", "locked", "--gpu-mem", "8GiB"), "RECIPE_DIR"),
    "plan of a script": (("plan", "locked/train.py", "--gpu-mem", "8GiB"), "RECIPE_DIR"),
    "plan of a run": ((*PLAN, "--from-run", "locked"), "--from-run"),
    "doctor": (("doctor", "locked/train.py"), "RECIPE_DIR"),
    "patch": (("patch", "apply", "locked"), "RECIPE_DIR"),
    "bounded": (
        ("bounded", "aishell/zipformer", "--icefall-root", "locked", "--synthetic"), "icefall_root",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", LOCKED_WORDS)
def test_a_path_that_must_not_be_looked_at_is_one_line_and_status_two(command, locked, what):
    words, name = LOCKED_WORDS[what]
    status, text, error = command(*words)
    assert (status, text) == (2, "")
    assert error.startswith(f"panda-icefall: {name}: cannot read ")
    assert error.endswith(": Permission denied\n")
    assert "locked" in error
    assert (error.count("\n"), "Errno" in error) == (1, False)
