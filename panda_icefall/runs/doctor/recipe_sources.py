"""The files that a training script imports, followed one by one without running any of them."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["RecipeSources", "Source"]


@dataclass(frozen=True)
class Source:
    """One parsed file.

    Attributes:
      path: Where it lies.
      tree: What it holds.
      package: The package its relative imports start from; empty for a top-level module.
      names: What its imports bind: local name to full dotted name.
    """

    path: Path
    tree: ast.Module
    package: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def full_name(self, expression: ast.expr) -> str | None:
        """The dotted name of ``a`` or ``a.b.c`` with its import written out; else ``None``."""
        if isinstance(expression, ast.Name):
            return self.names.get(expression.id, expression.id)
        if isinstance(expression, ast.Attribute):
            owner = self.full_name(expression.value)
            return None if owner is None else f"{owner}.{expression.attr}"
        return None


class RecipeSources:
    """A training script, its neighbours that it imports, and what they import of icefall.

    Args:
      train_py: The training script; its folder is searched first, as Python does.
      icefall_root: The folder that holds the ``icefall`` package, if known.

    Attributes:
      train_py: The training script.
      root: The folder that holds the ``icefall`` package, if known.
      of_recipe: The files of the recipe's own folder, the training script first.
      needed: Top-level modules that are imported from elsewhere, other than in a ``try`` or a
        function; each with the file that imports it.
      missing: Those of them that are nowhere.
      unreadable: Files that could not be parsed, each with the reason.
      imports_icefall: Whether one of the files imports the ``icefall`` package.
    """

    def __init__(self, train_py: Path, icefall_root: Path | None = None) -> None:
        self.of_recipe: list[Source] = []
        self.needed: dict[str, Path] = {}
        self.unreadable: dict[Path, str] = {}
        self.imports_icefall = False
        self.train_py = train_py
        self._folder = train_py.parent
        self.root = icefall_root
        self._by_path: dict[Path, Source] = {}
        self._imported: set[str] = set()
        self._read(train_py, "")
        self.missing = {
            top: importer
            for top, importer in self.needed.items()
            if not _is_importable(top, self._names_in(top))
        }

    def module(self, name: str) -> Source | None:
        """The file of the recipe's folder that ``import name`` would run."""
        path = _file_of(self._folder, name)
        return None if path is None else self._by_path.get(path)

    def has_parts_in(self, folder: Path, top: str) -> bool:
        """Whether a folder holds what the files import of a top-level module, or the module."""
        return any(_file_of(folder, name) is not None for name in {top, *self._names_in(top)})

    def _names_in(self, top: str) -> list[str]:
        """What the files import of ``top``: dotted names of modules, or of names within one."""
        return [name for name in self._imported if name.startswith(f"{top}.")]

    def _read(self, path: Path, package: str) -> None:
        if path in self._by_path or path in self.unreadable:
            return
        try:
            tree = ast.parse(path.read_bytes(), filename=str(path))
        except (OSError, SyntaxError, ValueError) as error:
            self.unreadable[path] = _why_unreadable(path, error)
            return
        source = Source(path, tree, package)
        self._by_path[path] = source
        if self._folder in path.parents:
            self.of_recipe.append(source)
        at_import = {id(statement) for statement in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for name, is_demanded in _imported_modules(source, node):
                    self._follow(name, path, is_demanded and id(node) in at_import)

    def _follow(self, name: str, importer: Path, is_needed: bool) -> None:
        top = name.partition(".")[0]
        is_icefall = top == "icefall"
        self.imports_icefall |= is_icefall
        self._imported.add(name)
        base = self._folder if _file_of(self._folder, top) or not is_icefall else self.root
        # The recipe's folder itself, as a package, with the folder above on the path.
        is_package = (self._folder / "__init__.py").is_file()
        is_own_package = top == self._folder.name and not _file_of(self._folder, top) and is_package
        if is_own_package:
            base = self._folder.parent
        parts = name.split(".")
        found = False
        for length in range(1, len(parts) + 1):
            path = None if base is None else _file_of(base, ".".join(parts[:length]))
            if path is not None:
                found = True
                is_package = path.name == "__init__.py"
                self._read(path, ".".join(parts[: length if is_package else length - 1]))
        if is_needed and (not found or is_own_package):
            self.needed.setdefault(top, importer)


def _file_of(folder: Path, module: str) -> Path | None:
    path = folder.joinpath(*module.split("."))
    for candidate in (path / "__init__.py", path.with_name(path.name + ".py")):
        if candidate.is_file() or candidate.is_symlink():
            return candidate
    return None


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"cannot read {path}: {error.strerror}"
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which does not exist"
    if not path.is_file():
        return str(error)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if len(lines) == 1 and lines[0].endswith(".py"):
        return f"a link of git checked out as text ({lines[0]}); set core.symlinks and check it out"
    return str(error)


def _imported_modules(source: Source, node: ast.stmt) -> Iterator[tuple[str, bool]]:
    """Modules that one import names, and whether it fails without them; notes what it binds."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            source.names[bound] = alias.name if alias.asname else bound
            yield alias.name, True
    elif isinstance(node, ast.ImportFrom):
        parents = source.package.split(".") if node.level else []
        parents = parents[: len(parents) - node.level + 1] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        if base:
            yield base, True
        for alias in node.names:
            full = f"{base}.{alias.name}" if base else alias.name
            source.names[alias.asname or alias.name] = full
            yield full, False  # a module, or a name within one


def _is_importable(top: str, names: list[str]) -> bool:
    """Whether ``import top`` finds a module, or a folder that holds one of ``names``."""
    if top in sys.builtin_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # loaded by other means than a spec
        return True
    if spec is None or spec.origin is not None:
        return spec is not None
    # A mere folder: a package in parts, or one that only happens to be called so.
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    return any(
        next(folder.glob(f"{name.split('.')[1]}*"), None) for folder in folders for name in names
    )
