#!/usr/bin/env python3
"""Write patches/icefall/*.patch and patches/manifest.json from an icefall checkout.

    scripts/make_patches.py --icefall-root /path/to/icefall

The training scripts are read from the pinned commit, not from the working tree, and the lines are
placed by the code behind `panda-icefall patch apply`.
"""

import argparse
import difflib
import subprocess
import sys
from pathlib import Path

from panda_icefall.runs.patching.lines import add_lines
from panda_icefall.runs.patching.manifest import MANIFEST_PATH, KnownFile, Manifest, sha256

COMMIT = "36e0420c7e3e849a25b3d24dbf913c424f3d23c9"
RECIPES = ("aishell/ASR/zipformer", "librispeech/ASR/zipformer", "wenetspeech/ASR/zipformer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--icefall-root", type=Path, required=True, help="An icefall checkout.")
    parser.add_argument(
        "--out", type=Path, default=MANIFEST_PATH.parent, help="Folder for icefall/ and manifest."
    )
    args = parser.parse_args()
    known = tuple(write_patch(args.icefall_root, recipe, args.out) for recipe in RECIPES)
    (args.out / MANIFEST_PATH.name).write_text(Manifest(COMMIT, known).dumps(), encoding="utf-8")


def write_patch(root: Path, recipe: str, out: Path) -> KnownFile:
    """Write the patch file of one recipe."""
    path = f"egs/{recipe}/train.py"
    source = file_in_commit(root, path)
    patched = add_lines(source)
    diff = zero_context_diff(path, source, patched)
    name = f"icefall/{recipe.replace('/', '-')}.patch"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(diff)
    return KnownFile(path, sha256(source), sha256(patched), name, sha256(diff))


def zero_context_diff(path: str, before: bytes, after: bytes) -> bytes:
    """A patch for ``git apply --unidiff-zero`` that carries no line of the file it patches."""
    sides = (before.splitlines(keepends=True), after.splitlines(keepends=True))
    names = (f"a/{path}".encode(), f"b/{path}".encode())
    return b"".join(difflib.diff_bytes(difflib.unified_diff, *sides, *names, n=0))


def file_in_commit(root: Path, path: str) -> bytes:
    """The bytes of one file at the pinned commit."""
    done = subprocess.run(
        ["git", "-C", str(root), "show", f"{COMMIT}:{path}"], capture_output=True, check=False
    )
    if done.returncode != 0:
        sys.exit(
            f"--icefall-root: {root} gives no {path} at commit {COMMIT}, expected an icefall "
            f"checkout that has it; git says: {done.stderr.decode().strip()}"
        )
    return done.stdout


if __name__ == "__main__":
    main()
