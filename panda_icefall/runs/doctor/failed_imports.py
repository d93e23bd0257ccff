"""A recipe that cannot be imported: the doctor's remedy in place of a traceback."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from panda_icefall.runs.doctor.checkout import find_root
from panda_icefall.runs.doctor.findings import PROBLEM
from panda_icefall.runs.doctor.k2_build import K2Install, examine_k2, find_k2
from panda_icefall.runs.doctor.probes import Answer, ask
from panda_icefall.runs.doctor.recipe import examine_imports, how_to_get
from panda_icefall.runs.doctor.recipe_sources import RecipeSources
from panda_icefall.runs.doctor.torch_build import read_torch
from panda_icefall.runs.errors import UsageError

__all__ = ["explained_imports", "require_imports"]


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


def _remedy(error: ImportError, train_py: Path) -> Optional[str]:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename[:1] != "<"]
    module = (error.name or "").partition(".")[0]
    is_absent = isinstance(error, ModuleNotFoundError)
    k2 = find_k2()
    is_inside_k2 = k2 is not None and any(k2.folder in Path(f.filename).parents for f in frames)
    if is_inside_k2 or (is_absent and module in ("k2", "_k2")):
        imported = Answer(error=f"{type(error).__name__}: {' '.join(str(error).split())}")
        return f"{train_py} imports k2: {_k2_fault(k2, imported)}"
    if not is_absent or not module:
        return None
    sources = RecipeSources(train_py, find_root(None, train_py))
    # The last frames may be those of a finder, as the path hook of an editable installation.
    last = ([f for f in frames if "import" in (f.line or "")] or frames)[-1]
    where = f"{last.filename}:{last.lineno}"
    return f"{where} imports {error.name}, which is not found; {how_to_get(module, sources)}"


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


def _k2_fault(k2: Optional[K2Install], imported: Answer) -> Optional[str]:
    """What keeps k2 from being imported, and what to do about it."""
    for finding in examine_k2(k2, read_torch(), imported):
        if finding.level == PROBLEM or k2 is None:
            return f"k2{' is' * (k2 is None)} {finding.text}; {finding.advice}"
    return None
