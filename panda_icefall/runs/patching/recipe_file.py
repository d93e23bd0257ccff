"""The patch in files: put into a recipe's train.py, taken out again, looked at."""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from panda_icefall.runs.atomic_file import replace_file
from panda_icefall.runs.doctor.findings import PROBLEM
from panda_icefall.runs.doctor.recipe import examine_losses
from panda_icefall.runs.doctor.recipe_sources import RecipeSources
from panda_icefall.runs.errors import UsageError, reading
from panda_icefall.runs.patching.lines import (
    PatchKind,
    PatchState,
    add_lines,
    check_removal,
    read_state,
)
from panda_icefall.runs.patching.manifest import MANIFEST_PATH, Manifest, describe_content

__all__ = ["PatchResult", "apply_patch", "check_patch", "describe_check", "revert_patch"]


@dataclass(frozen=True)
class PatchResult:
    """What was found in one file, or done to it.

    Attributes:
      path: The file, without links in its path.
      kind: What the file holds of the patch, afterwards where it was changed.
      is_changed: Whether the file was written.
      lines: Numbers of PANDA's lines, from 1: those that are there, or would be put there.
      unpatched: The file's bytes without PANDA's lines.
      refusal: Why the patch cannot be applied to the file; else empty.
    """

    path: Path
    kind: PatchKind
    is_changed: bool
    lines: tuple[int, ...]
    unpatched: bytes
    refusal: str = ""


def apply_patch(recipe: Path, *, is_forced: bool = False) -> PatchResult:
    """Put PANDA's lines into a recipe; one that has them all is left alone.

    Args:
      recipe: The recipe's folder, or a training script in it other than ``train.py``.
      is_forced: Also into one whose loss cannot be routed, as ``panda-icefall doctor`` sees it:
        it reads the files beside the training script, and knows of no others.

    Returns:
      The result; everything else in the file, and its mode, are as before.

    Raises:
      UsageError: The file is missing, is a link or in a linked folder, has not the shape of a
        training script, has no loss that can be routed, holds the patch in part, or cannot be
        written.
    """
    path, source, state = _read(recipe)
    with _named(path):
        if state.kind is PatchKind.PARTIAL:
            raise UsageError(_partial_message(state, recipe))
        if state.kind is PatchKind.APPLIED:
            return PatchResult(path, state.kind, False, state.lines, state.unpatched)
        patched = add_lines(source)
        if not is_forced:
            _require_routable(path)
        _require_writable(path)
    _write(path, patched)
    return PatchResult(path, PatchKind.APPLIED, True, read_state(patched).lines, source)


def revert_patch(recipe: Path) -> PatchResult:
    """Take PANDA's lines out of a recipe, those of a patch applied in part too.

    Args:
      recipe: As for :func:`apply_patch`.

    Returns:
      The result; everything else in the file, and its mode, are as before.

    Raises:
      UsageError: The file is missing, is a link, has a line of the patch that was edited, would
        be broken without the lines, or cannot be written.
    """
    path, _, state = _read(recipe)
    if state.kind is PatchKind.UNPATCHED:
        return PatchResult(path, state.kind, False, (), state.unpatched)
    with _named(path):
        if state.edited:
            raise UsageError(_partial_message(state, recipe))
        check_removal(state)
        _require_writable(path)
    _write(path, state.unpatched)
    return PatchResult(path, PatchKind.UNPATCHED, True, state.lines, state.unpatched)


def check_patch(recipe: Path) -> PatchResult:
    """Say what a recipe holds of the patch, and whether it could be applied; writes nothing.

    Raises:
      UsageError: The file is missing or is a link.
    """
    path, source, state = _read(recipe)
    lines, refusal = state.lines, ""
    if state.kind is PatchKind.PARTIAL:
        refusal = _partial_message(state, recipe)
    elif state.kind is PatchKind.UNPATCHED:
        try:
            _require_writable(path)
            patched = add_lines(source)
            _require_routable(path)
            lines = read_state(patched).lines
        except UsageError as error:
            refusal = str(error)
    return PatchResult(path, state.kind, False, lines, state.unpatched, refusal)


def describe_check(result: PatchResult) -> str:
    """The lines that ``panda-icefall patch check`` prints of a result of :func:`check_patch`."""
    state = result.kind.value
    if result.kind is PatchKind.UNPATCHED:
        state += ", not applicable" if result.refusal else ", applicable"
    where = f"lines {' and '.join(map(str, result.lines))}"
    return "\n".join(
        [
            str(result.path),
            f"  {state}: {result.refusal or where}",
            f"  {describe_content(result.path, result.unpatched, Manifest.read(MANIFEST_PATH))}",
        ]
    )


def _read(recipe: Path) -> tuple[Path, bytes, PatchState]:
    """The file of a recipe, its bytes, and what they hold of the patch."""
    with reading("RECIPE_DIR", recipe):
        path = _find(recipe)
    with reading("RECIPE_DIR", path):
        source = path.read_bytes()
    return path, source, read_state(source)


def _find(recipe: Path) -> Path:
    path = recipe / "train.py" if recipe.is_dir() else recipe
    for link, what in ((path.parent, "folder"), (path, "file")):
        if link.is_symlink():
            raise UsageError(
                f"RECIPE_DIR: {link} is a link to {link.resolve()}, which other recipes may "
                f"share; name that {what} if you mean it"
            )
    if not path.is_file():
        raise UsageError(
            f"RECIPE_DIR: {path} does not exist, expected a recipe's folder with a train.py, or "
            "the training script itself"
        )
    return path.resolve()


def _require_routable(path: Path) -> None:
    for finding in examine_losses(RecipeSources(path)):
        if finding.level == PROBLEM:
            raise UsageError(
                f"{finding.subject}: {finding.text}; {finding.advice}; `panda-icefall patch apply "
                "--force` puts the lines in anyway"
            )


def _require_writable(path: Path) -> None:
    # A file is replaced by a new one, which its own permissions would not prevent; nor root's.
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & 0o222 or not os.access(path, os.W_OK):
        raise UsageError(f"it is write-protected (mode {mode:04o}); `chmod u+w {path}` first")


def _write(path: Path, content: bytes) -> None:
    try:
        replace_file(path, content, keep_mode=True, is_synced=True)
    except OSError as error:
        raise UsageError(f"RECIPE_DIR: cannot write {path}: {error}") from error


def _partial_message(state: PatchState, recipe: Path) -> str:
    if state.edited:
        return f"{state.reason}; remove that line by hand"
    return (
        f"the patch is incomplete: {state.reason}; take it out with "
        f"`panda-icefall patch revert {recipe}` first"
    )


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's path ahead of what is said of it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"RECIPE_DIR: {path}: {error}") from error
