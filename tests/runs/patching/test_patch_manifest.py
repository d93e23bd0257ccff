"""The patch files that are kept, and how a recipe's content compares with theirs."""

import re
from pathlib import Path

import pytest

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.patching.lines import DECORATOR, IMPORT
from panda_icefall.runs.patching.manifest import (
    MANIFEST_PATH,
    KnownFile,
    Manifest,
    describe_content,
    sha256,
)

KNOWN = KnownFile("egs/a/ASR/zipformer/train.py", sha256(b"x"), sha256(b"y"), "p", sha256(b"z"))


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "manifest.json"
    manifest = Manifest("36e0420", (KNOWN,))
    path.write_text(manifest.dumps())
    assert Manifest.read(path) == manifest
    assert Manifest.read(tmp_path / "none.json") is None


@pytest.mark.parametrize("text", ["{", "{}", '{"commit": "c", "files": [{"path": "p"}]}', "[]"])
def test_another_file_is_no_manifest(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(f"{path} is no manifest of patches")):
        Manifest.read(path)


@pytest.mark.parametrize(
    ("path", "content", "line"),
    [
        ("/i/egs/a/ASR/zipformer/train.py", b"x", "content: the same as in icefall 36e0420"),
        ("/i/egs/a/ASR/zipformer/train.py", b"w", "content: not the same as .*in icefall 36e0420"),
        ("/i/egs/a/ASR/zipformer/train_bbpe.py", b"x", "no patch file.*zipformer/train_bbpe.py"),
        ("/train.py", b"x", "no patch file is kept"),
    ],
)
def test_content_is_compared_with_the_known_file_of_its_path(path, content, line):
    assert re.search(line, describe_content(Path(path), content, Manifest("36e0420", (KNOWN,))))


def test_without_a_manifest_nothing_is_compared():
    assert "there is no manifest" in describe_content(Path("/train.py"), b"x", None)


def test_the_kept_patch_files_are_those_of_the_manifest_and_carry_no_line_of_icefall():
    manifest = Manifest.read(MANIFEST_PATH)
    assert re.fullmatch("[0-9a-f]{40}", manifest.commit)
    folder = MANIFEST_PATH.parent
    listed = {folder / known.patch: known for known in manifest.files}
    assert set(folder.rglob("*.patch")) == set(listed)
    for path, known in listed.items():
        diff = path.read_bytes()
        assert sha256(diff) == known.patch_sha256
        lines = diff.splitlines()
        assert lines[:2] == [f"--- a/{known.path}".encode(), f"+++ b/{known.path}".encode()]
        assert [line for line in lines[2:] if not line.startswith(b"@@")] == [
            b"+" + IMPORT,
            b"+" + DECORATOR,
        ]
        assert all(re.fullmatch(rb"@@ -\d+,0 \+\d+ @@", x) for x in lines if x.startswith(b"@@"))
