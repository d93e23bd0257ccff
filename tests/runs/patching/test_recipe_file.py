"""The patch in a recipe's file: put in, taken out byte for byte, refused where it must be."""

import os
import re
import stat

import pytest

from panda_icefall.runs import UsageError
from panda_icefall.runs.patching import recipe_file
from panda_icefall.runs.patching.lines import DECORATOR, IMPORT, PatchKind
from panda_icefall.runs.patching.recipe_file import apply_patch, check_patch, revert_patch

SOURCE = b"""import os
from other import compute_loss, train_one_epoch

def main():
    k2.rnnt_loss_pruned(k2.do_rnnt_pruning())

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def train_py(tmp_path):
    path = tmp_path / "zipformer" / "train.py"
    path.parent.mkdir()
    path.write_bytes(SOURCE)
    return path


@pytest.mark.parametrize(
    "content", [SOURCE, SOURCE.replace(b"\n", b"\r\n"), SOURCE.rstrip(), b"\xef\xbb\xbf" + SOURCE]
)
@pytest.mark.parametrize("mode", [0o755, 0o640])
def test_revert_restores_bytes_and_mode(train_py, content, mode):
    train_py.write_bytes(content)
    train_py.chmod(mode)
    assert apply_patch(train_py.parent).lines == (3, 5)
    assert train_py.read_bytes() != content
    assert stat.S_IMODE(train_py.stat().st_mode) == mode
    assert revert_patch(train_py.parent).is_changed
    assert train_py.read_bytes() == content
    assert stat.S_IMODE(train_py.stat().st_mode) == mode
    assert os.listdir(train_py.parent) == ["train.py"]


def test_both_are_idempotent(train_py):
    assert not revert_patch(train_py.parent).is_changed
    assert apply_patch(train_py.parent).is_changed
    patched = train_py.read_bytes()
    again = apply_patch(train_py.parent)
    assert (again.is_changed, again.lines) == (False, (3, 5))
    assert train_py.read_bytes() == patched
    assert revert_patch(train_py.parent).is_changed
    assert not revert_patch(train_py.parent).is_changed
    assert train_py.read_bytes() == SOURCE


def test_the_users_own_edits_stay(train_py):
    apply_patch(train_py.parent)
    edited = train_py.read_bytes().replace(b"_pruning())\n", b"_pruning())  # mine\n")
    edited = edited.replace(IMPORT + b"\n", IMPORT + b"\nimport sys\n\n")
    train_py.write_bytes(edited.replace(DECORATOR, DECORATOR + b"\n@mine"))
    assert check_patch(train_py.parent).kind is PatchKind.APPLIED
    assert not apply_patch(train_py.parent).is_changed
    revert_patch(train_py.parent)
    assert train_py.read_bytes() == (
        SOURCE.replace(b"_pruning())\n", b"_pruning())  # mine\n")
        .replace(b"train_one_epoch\n", b"train_one_epoch\nimport sys\n\n")
        .replace(b"def main", b"@mine\ndef main")
    )


def test_a_script_other_than_train_py_is_named_itself(train_py):
    other = train_py.with_name("train_bbpe.py")
    other.write_bytes(SOURCE)
    assert apply_patch(other).path == other.resolve()
    assert train_py.read_bytes() == SOURCE
    revert_patch(other)
    assert other.read_bytes() == SOURCE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.replace(IMPORT + b"\n", b""), "import with_panda .*is in 0 lines"),
        (lambda s: s.replace(DECORATOR + b"\n", b""), "`@with_panda .*is in 0 lines"),
        (lambda s: s.replace(IMPORT, IMPORT + b"\n" + IMPORT), "is in 2 lines, expected 1"),
        (lambda s: s.replace(b"def main", b"def mine(): ...\n\ndef main"), "lines 3 and 5 are not"),
    ],
)
def test_a_patch_in_part_is_refused_and_can_be_taken_out(train_py, change, reason):
    apply_patch(train_py.parent)
    train_py.write_bytes(change(train_py.read_bytes()))
    partial = train_py.read_bytes()
    expected = f"incomplete: .*{reason}.*patch revert {re.escape(str(train_py.parent))}` first"
    with pytest.raises(UsageError, match=expected):
        apply_patch(train_py.parent)
    assert train_py.read_bytes() == partial
    found = check_patch(train_py.parent)
    assert found.kind is PatchKind.PARTIAL
    assert re.search(reason, found.refusal)
    revert_patch(train_py.parent)
    assert IMPORT not in train_py.read_bytes()
    assert DECORATOR not in train_py.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (DECORATOR, b"@with_panda", "line 5 uses with_panda, which the patch imports"),
        (b"    k2.rnnt", b"    return with_panda, k2.rnnt", "line 7 uses with_panda"),
        (b'if __name__ == "__main__":', b"if with_panda:", "line 9 uses with_panda"),
        (b"import os", b"def f():\n    return [with_panda for _ in ()]", "line 2 uses with_panda"),
        (b"def main", b"def main(x", r"without lines 3 and 5 it is not Python source: .*line 4"),
    ],
)
def test_a_file_that_would_be_broken_without_the_lines_is_left_as_it_is(train_py, old, new, reason):
    apply_patch(train_py.parent)
    broken = train_py.read_bytes().replace(old, new)
    train_py.write_bytes(broken)
    with pytest.raises(UsageError, match=rf"RECIPE_DIR: .*train\.py: {reason}"):
        revert_patch(train_py.parent)
    assert train_py.read_bytes() == broken


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (IMPORT, b"from panda_icefall.runs.native import with_panda"),  # theirs now
        (b"import os", b"import os\nwith_panda = print"),
        (b"    k2.rnnt", b"    with_panda = 1\n    return with_panda or k2.rnnt"),
        (b"    k2.rnnt", b"    return os.with_panda, k2.rnnt"),
    ],
)
def test_a_with_panda_of_the_files_own_does_not_matter(train_py, old, new):
    apply_patch(train_py.parent)
    assert old in train_py.read_bytes()
    train_py.write_bytes(train_py.read_bytes().replace(old, new))
    assert revert_patch(train_py.parent).is_changed
    compile(train_py.read_bytes(), "train.py", "exec")
    assert b"@with_panda" not in train_py.read_bytes()


def test_a_write_protected_file_is_refused(train_py):
    train_py.chmod(0o444)
    message = r"train\.py: it is write-protected \(mode 0444\); `chmod u\+w .*train\.py` first"
    with pytest.raises(UsageError, match=message):
        apply_patch(train_py.parent)
    assert "write-protected (mode 0444)" in check_patch(train_py.parent).refusal
    assert train_py.read_bytes() == SOURCE
    train_py.chmod(0o644)
    apply_patch(train_py.parent)
    train_py.chmod(0o444)
    assert check_patch(train_py.parent).kind is PatchKind.APPLIED
    with pytest.raises(UsageError, match=message):
        revert_patch(train_py.parent)
    assert DECORATOR in train_py.read_bytes()
    assert stat.S_IMODE(train_py.stat().st_mode) == 0o444


@pytest.mark.parametrize("named", ["linked", "linked/train.py"])
def test_a_linked_folder_is_refused_with_the_real_one_named(train_py, tmp_path, named):
    (tmp_path / "linked").symlink_to(train_py.parent)
    real = re.escape(str(train_py.parent.resolve()))
    for verb in (apply_patch, revert_patch, check_patch):
        with pytest.raises(UsageError, match=rf"linked is a link to {real}, .*name that folder"):
            verb(tmp_path / named)
    assert train_py.read_bytes() == SOURCE
    assert apply_patch(train_py.parent.resolve()).is_changed


def test_a_line_of_the_patch_that_was_edited_is_left_to_the_user(train_py):
    apply_patch(train_py.parent)
    edited = train_py.read_bytes().replace(b"import with_panda", b"import with_panda as p")
    train_py.write_bytes(edited)
    message = "line 3 carries the patch's marker but was edited; remove that line by hand"
    for verb in (apply_patch, revert_patch):
        with pytest.raises(UsageError, match=message):
            verb(train_py.parent)
    assert train_py.read_bytes() == edited


def test_a_link_to_another_recipes_file_is_refused_with_the_real_one_named(train_py, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "train.py").symlink_to(train_py)
    for verb in (apply_patch, revert_patch, check_patch):
        with pytest.raises(UsageError, match=rf"is a link to {re.escape(str(train_py.resolve()))}"):
            verb(folder)
    assert (folder / "train.py").is_symlink()
    assert train_py.read_bytes() == SOURCE


def test_a_missing_file_is_named(tmp_path):
    for verb in (apply_patch, revert_patch, check_patch):
        with pytest.raises(UsageError, match=r"train\.py does not exist, expected a recipe's"):
            verb(tmp_path)


def test_an_unknown_shape_is_refused_with_the_file_named(train_py):
    train_py.write_bytes(b"import os\n")
    with pytest.raises(UsageError, match=r"RECIPE_DIR: .*train\.py: looked for one `def main"):
        apply_patch(train_py.parent)
    assert "looked for one `def main" in check_patch(train_py.parent).refusal
    assert train_py.read_bytes() == b"import os\n"


def test_a_write_that_fails_leaves_the_file_and_nothing_else(train_py, monkeypatch):
    def fail(source, target):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match=r"cannot write .*train\.py: the disk is full"):
        apply_patch(train_py.parent)
    assert train_py.read_bytes() == SOURCE
    assert os.listdir(train_py.parent) == ["train.py"]


def test_a_file_that_cannot_be_read_is_named(train_py, monkeypatch):
    def fail(path):
        raise PermissionError("not yours")

    monkeypatch.setattr(recipe_file.Path, "read_bytes", fail)
    with pytest.raises(UsageError, match=r"cannot read .*train\.py: not yours"):
        check_patch(train_py.parent)


def test_check_writes_nothing_and_tells_where_the_lines_would_go(train_py):
    before = train_py.stat().st_mtime_ns
    found = check_patch(train_py.parent)
    assert (found.kind, found.lines, found.refusal) == (PatchKind.UNPATCHED, (3, 5), "")
    assert (train_py.read_bytes(), train_py.stat().st_mtime_ns) == (SOURCE, before)
