#!/usr/bin/env python3
"""Write patches/icefall/*.patch and patches/manifest.json from an icefall checkout.

    scripts/make_patches.py --icefall-root /path/to/icefall

The training scripts are read from the pinned commit, not from the working tree, and the lines are
placed by the code behind `panda-icefall patch apply`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from panda_icefall.runs.patching.manifest import MANIFEST_PATH, KnownFile, Manifest, sha256
from panda_icefall.runs.patching.placement import insert, place
from panda_icefall.runs.patching.unified_diff import zero_context_diff

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
    insertions = place(source)
    diff = zero_context_diff(path, insertions)
    name = f"icefall/{recipe.replace('/', '-')}.patch"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_bytes(diff)
    return KnownFile(path, sha256(source), sha256(insert(source, insertions)), name, sha256(diff))


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
