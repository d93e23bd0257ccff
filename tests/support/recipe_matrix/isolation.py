"""Importing a recipe folder as if started in it, and forgetting its modules afterwards."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch


def egs() -> Path:
    """The `egs` folder of the icefall checkout that ICEFALL_ROOT names."""
    return Path(os.environ["ICEFALL_ROOT"]).resolve() / "egs"


@contextmanager
def recipe_folder_first(folder: Path) -> Iterator[None]:
    """Import as if started in `folder`; afterwards no module of any recipe answers to its name.

    Recipes call their files `model`, `decoder`, `train`..., some add further folders to `sys.path`:
    two of them would otherwise get each other's.
    """
    names = {path.stem for path in folder.iterdir()}
    displaced = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = [str(folder), str(egs().parent)]
    try:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(sys, "dont_write_bytecode", True))
            # Recipes set them when imported; torch refuses a second call of the latter.
            stack.enter_context(mock.patch.object(torch, "set_num_threads"))
            stack.enter_context(mock.patch.object(torch, "set_num_interop_threads"))
            yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if _is_of_a_recipe(sys.modules[name]):
                del sys.modules[name]
        sys.modules.update(displaced)


def _is_of_a_recipe(module: ModuleType) -> bool:
    """Whether it was loaded from below `egs`; a folder without `__init__.py` has no file."""
    # Some modules make up any attribute they are asked for.
    known = getattr(module, "__dict__", {})
    places = [known.get("__file__") or "", *known.get("__path__", ())]
    return any(place.startswith(str(egs())) for place in places)


def train_module(name: str) -> ModuleType:
    """The module with a recipe's parser and builder."""
    return importlib.import_module(name)


@contextmanager
def on_path(folder: str) -> Iterator[None]:
    """A folder below `egs` on `sys.path`."""
    with mock.patch.object(sys, "path", [*sys.path, str(egs() / folder)]):
        yield


class _Mended(SourceFileLoader):
    """Loads a file as if its text were mended."""

    def __init__(self, name: str, path: str, wrong: str, right: str) -> None:
        super().__init__(name, path)
        self.wrong, self.right = wrong, right

    def get_data(self, path: str) -> bytes:
        return super().get_data(path).replace(self.wrong.encode(), self.right.encode())


@contextmanager
def mended(name: str, file: str, wrong: str, right: str) -> Iterator[None]:
    """Import module `name` from a file below `egs` as if it said `right` for `wrong`."""

    class Finder:
        @staticmethod
        def find_spec(fullname: str, path: object = None, target: object = None) -> object:
            if fullname != name:
                return None
            loader = _Mended(name, str(egs() / file), wrong, right)
            return spec_from_file_location(name, egs() / file, loader=loader)

    with mock.patch.object(sys, "meta_path", [Finder, *sys.meta_path]):
        yield


@contextmanager
def stand_in_modules(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Give modules their names, those of packages that are installed excepted."""
    missing = []
    for name, module in modules.items():
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
            sys.modules[name] = module
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


@contextmanager
def stand_in_attributes(module: str, *names: str) -> Iterator[None]:
    """Give a module the classes it lacks, empty ones."""
    owner = importlib.import_module(module)
    with ExitStack() as stack:
        for name in names:
            if not hasattr(owner, name):
                stack.enter_context(mock.patch.object(owner, name, type(name, (), {}), create=True))
        yield
