"""Whether icefall, k2 and all that a recipe imports can be found; else what to do about it."""

import contextlib
import importlib.util
import os
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

from panda_icefall.runs.doctor.environment import read_torch
from panda_icefall.runs.doctor.findings import PROBLEM, Finding, ok, problem, warning
from panda_icefall.runs.doctor.k2_build import K2Install, examine_k2, find_k2
from panda_icefall.runs.doctor.probes import Answer, ask, error_line
from panda_icefall.runs.doctor.recipe_sources import RecipeSources
from panda_icefall.runs.errors import UsageError

__all__ = [
    "examine_checkout",
    "examine_icefall_import",
    "examine_imports",
    "explained_imports",
    "find_root",
    "imported_root",
    "require_imports",
]

_CLONE = "name the folder of a clone of icefall with --icefall-root or ICEFALL_ROOT"


def find_root(given: Path | None, recipe: Path | None) -> Path | None:
    """The icefall folder that was named, else that around the recipe, else the importable one."""
    if given is not None:
        return given.resolve()
    if recipe is not None:
        for folder in recipe.absolute().parents:
            if _is_icefall(folder):
                return folder.resolve()
    return imported_root()


def imported_root() -> Path | None:
    """The folder from which ``import icefall`` would take it, without importing it."""
    spec = importlib.util.find_spec("icefall")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parents[1]


def _is_icefall(folder: Path) -> bool:
    return (folder / "icefall" / "__init__.py").is_file()


def examine_checkout(root: Path | None) -> Finding:
    """The commit of an icefall folder and whether its tracked files are changed."""
    if root is None:
        return warning("icefall", "not found", _CLONE)
    if not _is_icefall(root):
        return problem("icefall", f"{root} has no icefall/__init__.py", _CLONE)
    try:
        top = _git(root, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != root:
            raise RuntimeError(f"it is no repository of its own, but part of {top}")
        commit = _git(root, "log", "-1", "--format=%H of %cs")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    except (OSError, RuntimeError) as error:
        return warning(
            "icefall",
            f"{root}, at an unknown commit: {error}",
            "use a git clone, and install git, if the run must be repeatable",
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


def examine_icefall_import(root: Path | None, is_needed: bool) -> list[Finding]:
    """Whether ``import icefall`` finds ``root``.

    Args:
      root: An icefall folder, as :func:`find_root` gave it.
      is_needed: Whether the recipe that was asked about imports icefall.
    """
    if root is None or not _is_icefall(root):
        return []
    imported = imported_root()
    if imported == root:
        return [ok("import icefall", f"finds {root}")]
    advice = _export(root)
    if imported is not None:
        return [warning("import icefall", f"finds {imported}, not {root}", advice)]
    found = problem if is_needed else warning
    return [found("import icefall", f"fails: {root} is not in PYTHONPATH", advice)]


def _export(folder: Path | str) -> str:
    return f"export PYTHONPATH={folder}:$PYTHONPATH"


def examine_imports(sources: RecipeSources) -> list[Finding]:
    """Files of a recipe that cannot be read, and modules that are nowhere."""
    findings = [
        problem("imports", f"{path.name} cannot be read: {reason}", "fix the checkout")
        for path, reason in sources.unreadable.items()
    ]
    findings += [
        problem(
            "imports",
            f"{importer.name} imports {module}, which is neither beside it nor installed",
            _how_to_get(module, sources),
        )
        for module, importer in sources.missing.items()
    ]
    return findings or [ok("imports", "all modules the recipe imports are there")]


def _how_to_get(module: str, sources: RecipeSources) -> str:
    """What to do about a top-level module that a recipe imports and that is nowhere."""
    if module == "icefall":
        if sources.root is None:
            return f"clone icefall, and {_export('<its folder>')}"
        return _export(sources.root)
    if module == "k2":
        return "install the k2 wheel that the finding on k2 names"
    corpus_folder = sources.train_py.parents[1]
    # A recipe's folder is often called as the package it trains: it must hold what is imported.
    if sources.has_parts_in(corpus_folder, module):
        return f"{_export(corpus_folder)}, as this recipe's own scripts expect"
    return f"install {module}, or fix the checkout if it is a file of the recipe"


def require_imports(train_py: Path, icefall_root: Path) -> None:
    """Refuse a recipe that could not be imported, without running it.

    Args:
      train_py: The recipe's training script.
      icefall_root: The checkout that will be on its path.

    Raises:
      UsageError: A file or a module is missing, or k2 cannot be imported.
    """
    sources = RecipeSources(train_py, icefall_root)
    if "k2" in sources.needed:
        k2 = find_k2()
        fault = _k2_fault(k2, Answer() if k2 is None else ask("k2"))
        if fault is not None:
            raise UsageError(f"{train_py} imports k2: {fault}")
    for finding in examine_imports(sources):
        if finding.level == PROBLEM:
            raise UsageError(f"{train_py}: {finding.text}; {finding.advice}")


@contextlib.contextmanager
def explained_imports(train_py: Path) -> Iterator[None]:
    """Say what to do where the block, which imports a recipe, lacks a module or a working k2.

    Args:
      train_py: The recipe's training script.

    Raises:
      UsageError: A module is not installed or not on the path, or k2 cannot be imported.
      ImportError: Anything else that an import answers.
    """
    try:
        yield
    except ImportError as error:
        remedy = _remedy(error, train_py)
        if remedy is None:
            raise
        raise UsageError(f"{remedy}; `panda-icefall doctor {train_py}` says more") from error


def _remedy(error: ImportError, train_py: Path) -> str | None:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[:1] != "<"]
    module = (error.name or "").partition(".")[0]
    is_absent = isinstance(error, ModuleNotFoundError)
    k2 = find_k2()
    is_inside_k2 = k2 is not None and any(k2.folder in Path(f.filename).parents for f in frames)
    if is_inside_k2 or (is_absent and module in ("k2", "_k2")):
        fault = _k2_fault(k2, Answer(error=error_line(error)))
        return f"{train_py} imports k2: {fault}"
    if not is_absent or not module:
        return None
    sources = RecipeSources(train_py, find_root(None, train_py))
    # The last frames may be those of a finder, as the path hook of an editable installation.
    last = ([f for f in frames if "import" in (f.line or "")] or frames)[-1]
    where = f"{last.filename}:{last.lineno}"
    return f"{where} imports {error.name}, which is not found; {_how_to_get(module, sources)}"


def _k2_fault(k2: K2Install | None, imported: Answer) -> str | None:
    """What keeps k2 from being imported, and what to do about it."""
    for finding in examine_k2(k2, read_torch(), imported):
        if finding.level == PROBLEM or k2 is None:
            return f"k2{' is' * (k2 is None)} {finding.text}; {finding.advice}"
    return None
