"""The kept patch files, and a patched AISHELL recipe that trains without the launcher."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from icefall_run import PROJECT, SMALL_ZIPFORMER, icefall_root, logged_losses, run

from panda_icefall.runs.patching.manifest import MANIFEST_PATH, Manifest, sha256
from panda_icefall.runs.patching.recipe_file import apply_patch, revert_patch

pytestmark = [pytest.mark.k2, pytest.mark.icefall]

PATCHES = MANIFEST_PATH.parent
BATCHES = 5


def known_files():
    return Manifest.read(MANIFEST_PATH).files


def content_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def checkout(tmp_path):
    """A folder with the pinned content of one known file at its path."""

    def make(known):
        source = subprocess.run(
            ["git", "show", f"{Manifest.read(MANIFEST_PATH).commit}:{known.path}"],
            cwd=icefall_root(),
            capture_output=True,
            check=True,
        ).stdout
        path = tmp_path / known.path
        path.parent.mkdir(parents=True)
        path.write_bytes(source)
        run("git", "init", "-q", cwd=tmp_path)
        return path

    return make


def test_making_the_patches_again_gives_the_kept_bytes(tmp_path):
    script = PROJECT / "scripts/make_patches.py"
    run(sys.executable, script, "--icefall-root", icefall_root(), "--out", tmp_path, cwd=tmp_path)
    kept = content_of(PATCHES)
    made = content_of(tmp_path)
    assert made == {path: kept[path] for path in made}
    assert len(made) == 4


def test_a_folder_that_is_no_icefall_checkout_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts/make_patches.py", "--icefall-root", tmp_path],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"--icefall-root: {tmp_path} gives no egs/aishell" in done.stderr


@pytest.mark.parametrize("known", known_files(), ids=lambda known: known.patch)
def test_git_applies_each_patch_and_gives_the_bytes_of_patch_apply(checkout, tmp_path, known):
    path = checkout(known)
    original = path.read_bytes()
    assert sha256(original) == known.sha256_before
    apply = ("git", "apply", "--unidiff-zero")
    run(*apply, "--check", PATCHES / known.patch, cwd=tmp_path)
    run(*apply, PATCHES / known.patch, cwd=tmp_path)
    by_git = path.read_bytes()
    assert sha256(by_git) == known.sha256_after
    run(*apply, "--reverse", PATCHES / known.patch, cwd=tmp_path)
    assert path.read_bytes() == original
    apply_patch(path.parent, is_forced=True)  # its model.py is not there
    assert path.read_bytes() == by_git
    revert_patch(path.parent)
    assert path.read_bytes() == original


@pytest.fixture(scope="module")
def aishell(tmp_path_factory):
    """The AISHELL zipformer folder with its links resolved, and data for it."""
    folder = tmp_path_factory.mktemp("aishell")
    root = icefall_root()
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "egs/aishell/ASR/zipformer", folder / "zipformer", ignore=ignore)
    synth = [sys.executable, "-m", "panda_icefall", "synth", "aishell", "--out", folder / "data"]
    size = ["--utterances", 100, "--vocab", 500, "--seed", 42]
    run(*synth, *size, "--icefall-root", root, cwd=folder)
    return folder


def printed(text):
    """Every loss with its terms that the recipe logs."""
    return re.findall(r"\b\w*loss=[\d.]+", text)


def test_the_patched_recipe_trains_without_the_launcher_as_with_it(aishell):
    recipe = aishell / "zipformer"
    original = content_of(recipe)
    where = ["--manifest-dir", aishell / "data/fbank", "--lang-dir", aishell / "data/lang_char"]
    asked = ["--use-panda", 1, "--panda-max-batches", BATCHES]

    def train(arm, *start):
        out = ["--exp-dir", aishell / arm, "--panda-memory-log", aishell / f"{arm}.jsonl"]
        return run(*start, *where, *SMALL_ZIPFORMER, *asked, *out, cwd=aishell)

    launcher = [sys.executable, "-m", "panda_icefall", "run"]
    launched = train("launched", *launcher, "zipformer/train.py")
    run(*launcher[:-1], "patch", "apply", recipe, cwd=aishell)
    native = train("native", sys.executable, "zipformer/train.py")
    decode_help = run(sys.executable, "zipformer/decode.py", "--help", cwd=aishell)
    assert "PANDA" not in decode_help
    run(*launcher[:-1], "patch", "revert", recipe, cwd=aishell)
    assert content_of(recipe) == original

    curve = logged_losses(aishell / "native.jsonl")
    assert len(curve) == BATCHES
    assert curve == logged_losses(aishell / "launched.jsonl")
    assert len(printed(native)) >= 3
    assert printed(native) == printed(launched)
    assert re.search(r"losses routed / dense\W+[1-9]\d* / 0", native)
    ours, theirs = (
        torch.load(aishell / arm / "epoch-1.pt", weights_only=False)
        for arm in ("native", "launched")
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs["model"].items():
        assert torch.equal(ours["model"][name], value), name
