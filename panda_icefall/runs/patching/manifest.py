"""The recipes for which patch files are kept, and what they are at the pinned commit."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from panda_icefall.runs.errors import UsageError
from panda_icefall.shipped import shipped_folder

__all__ = ["MANIFEST_PATH", "KnownFile", "Manifest", "describe_content", "sha256"]

MANIFEST_PATH = shipped_folder("patches") / "manifest.json"


@dataclass(frozen=True)
class KnownFile:
    """One recipe's training script at the pinned commit.

    Attributes:
      path: Its path in an icefall checkout.
      sha256_before: Of its bytes in the commit.
      sha256_after: Of its bytes with the patch.
      patch: Path of the patch file, beside the manifest.
      patch_sha256: Of the patch file.
    """

    path: str
    sha256_before: str
    sha256_after: str
    patch: str
    patch_sha256: str


@dataclass(frozen=True)
class Manifest:
    """The known files of one icefall commit."""

    commit: str
    files: tuple[KnownFile, ...]

    def dumps(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Manifest | None":
        """The manifest in the file at ``path``; ``None`` where there is no such file.

        Raises:
          UsageError: The file is no manifest.
        """
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(content["commit"], tuple(KnownFile(**file) for file in content["files"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is no manifest of patches: {error!r}") from error


def sha256(content: bytes) -> str:
    """The hash of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def describe_content(train_py: Path, unpatched: bytes, manifest: Manifest | None) -> str:
    """One line on how a training script without PANDA's lines compares with the pinned commit's.

    Args:
      train_py: The script's resolved path; its end tells which known file it is.
      unpatched: Its bytes without PANDA's lines.
      manifest: What is known; ``None`` where no manifest is at hand.
    """
    if manifest is None:
        return "not compared with a known commit: there is no manifest beside this installation"
    for known in manifest.files:
        if train_py.as_posix().endswith(f"/{known.path}"):
            same = sha256(unpatched) == known.sha256_before
            verdict = "the same as" if same else "not the same as (the lines are placed anyway)"
            return f"unpatched content: {verdict} in icefall {manifest.commit}"
    script = f"{train_py.parent.name}/{train_py.name}"
    return f"not compared with a known commit: no patch file is kept for this {script}"
