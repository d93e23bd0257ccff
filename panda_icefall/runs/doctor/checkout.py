"""The icefall checkout: which commit, changed or not, and whether it is the one imported."""

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Optional

from panda_icefall.runs.doctor.findings import Finding, ok, problem, warning

__all__ = ["examine_checkout", "examine_import", "find_root", "imported_root"]

_CLONE = "name the folder of a clone of icefall with --icefall-root or ICEFALL_ROOT"


def find_root(given: Optional[Path], recipe: Optional[Path]) -> Optional[Path]:
    """The icefall folder that was named, else that around the recipe, else the importable one."""
    if given is not None:
        return given.resolve()
    if recipe is not None:
        for folder in recipe.absolute().parents:
            if _is_icefall(folder):
                return folder.resolve()
    return imported_root()


def imported_root() -> Optional[Path]:
    """The folder from which ``import icefall`` would take it, without importing it."""
    spec = importlib.util.find_spec("icefall")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parents[1]


def _is_icefall(folder: Path) -> bool:
    return (folder / "icefall" / "__init__.py").is_file()


def examine_checkout(root: Optional[Path]) -> Finding:
    """The commit of an icefall folder and whether its tracked files are changed."""
    if root is None:
        return warning("icefall", "not found", _CLONE)
    if not _is_icefall(root):
        return problem("icefall", f"{root} holds no icefall/__init__.py", _CLONE)
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root:
            raise RuntimeError(f"its git repository is that of {top}")
        commit = _git(root, "log", "-1", "--format=%H of %cs")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    except (OSError, RuntimeError) as error:
        return warning(
            "icefall",
            f"{root}, at an unknown commit: {error}",
            "use a git clone, and have git installed, where a run is to be repeatable",
        )
    if not changed:
        return ok("icefall", f"commit {commit}, clean, at {root}")
    return warning(
        "icefall",
        f"commit {commit}, dirty: {len(changed)} tracked file(s) changed, as {changed[0][3:]}; "
        f"at {root}",
        f"git -C {root} diff shows the changes; what is trained is not this commit alone",
    )


def _git(root: Path, *arguments: str) -> str:
    # Inside a git hook these would point git at another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(f"git: {lines[0]}")
    return done.stdout.strip("\n")


def examine_import(root: Optional[Path], is_needed: bool) -> list[Finding]:
    """Whether ``import icefall`` finds ``root``.

    Args:
      root: An icefall folder, as :func:`find_root` gave it.
      is_needed: Whether the recipe that was asked about imports icefall.
    """
    if root is None or not _is_icefall(root):
        return []
    imported = imported_root()
    advice = f"export PYTHONPATH={root}:$PYTHONPATH"
    if imported == root:
        return [ok("import icefall", f"finds {root}")]
    if imported is not None:
        return [warning("import icefall", f"finds {imported}, not {root}", advice)]
    found = problem if is_needed else warning
    return [found("import icefall", f"fails: {root} is not in PYTHONPATH", advice)]
