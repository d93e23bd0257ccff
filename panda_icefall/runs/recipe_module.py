"""A recipe's ``train.py``, run as ``__main__`` in two steps with room for wrappers between them."""

import __future__

import argparse
import ast
import contextlib
import functools
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.panda_arguments import add_panda_arguments

__all__ = ["RecipeFile", "panda_group_in_help", "wants_help"]

_FUTURE_FLAGS = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag,
    __future__.all_feature_names,
    0,
)


class RecipeFile:
    """The parsed source of one ``train.py``.

    Args:
      train_py: Path of the recipe's training script.

    Raises:
      UsageError: The path is missing, is no file, or does not hold Python source.
    """

    def __init__(self, train_py: str | Path) -> None:
        path = Path(train_py)
        if path.is_dir():
            raise UsageError(f"TRAIN_PY: got the folder {path}, expected a recipe's train.py")
        if not path.is_file():
            hint = "; options go after TRAIN_PY" if str(train_py).startswith("-") else ""
            raise UsageError(f"TRAIN_PY: {path} does not exist, expected a recipe's train.py{hint}")
        self.given = str(train_py)
        self.path = path.resolve()
        try:
            self._tree = ast.parse(path.read_bytes(), filename=str(self.path))
        except (SyntaxError, ValueError) as error:
            raise UsageError(f"TRAIN_PY: {path} is not Python source: {error}") from error
        self._guard = next(
            (i for i, statement in enumerate(self._tree.body) if _is_main_guard(statement)), None
        )

    def require_guard(self) -> None:
        """Raise ``UsageError`` unless the file has a top-level ``if __name__ == "__main__":``."""
        if self._guard is None:
            raise UsageError(
                f'TRAIN_PY: {self.path} has no top-level `if __name__ == "__main__":`, ahead '
                "of which PANDA wraps its functions; add one, or run it without PANDA options"
            )

    def define(self, module: types.ModuleType) -> int:
        """Execute everything before the guard in ``module``; returns its ``__future__`` flags."""
        code = self._compile(self._tree.body[: self._guard], 0)
        exec(code, module.__dict__)
        return code.co_flags & _FUTURE_FLAGS

    def start(self, module: types.ModuleType, future_flags: int) -> None:
        """Execute the guard and all that follows it in ``module``."""
        if self._guard is not None:
            exec(self._compile(self._tree.body[self._guard :], future_flags), module.__dict__)

    def _compile(self, body: list[ast.stmt], flags: int) -> types.CodeType:
        part = ast.Module(body=body, type_ignores=[])
        return compile(part, str(self.path), "exec", flags=flags, dont_inherit=True)

    @contextlib.contextmanager
    def as_main(self, recipe_args: list[str]) -> Iterator[types.ModuleType]:
        """Stand in for ``python train.py recipe_args``, and put everything back afterwards.

        Yields a fresh module registered as ``__main__``. Its ``__spec__`` is ``None`` and its
        ``__file__`` absolute, which is what lets ``multiprocessing`` import the recipe by path in
        spawned children and pickle its functions by name.
        """
        module = types.ModuleType("__main__")
        module.__file__ = str(self.path)
        module.__spec__ = None
        argv, path, main = sys.argv, list(sys.path), sys.modules["__main__"]
        sys.modules["__main__"] = module
        sys.argv = [self.given, *recipe_args]
        sys.path.insert(0, str(self.path.parent))
        try:
            yield module
        finally:
            sys.modules["__main__"] = main
            sys.argv = argv
            sys.path[:] = path


def _is_main_guard(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.If) or not isinstance(statement.test, ast.Compare):
        return False
    test = statement.test
    sides = [test.left, *test.comparators]
    return (
        len(sides) == 2
        and isinstance(test.ops[0], ast.Eq)
        and any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
        and any(isinstance(side, ast.Constant) and side.value == "__main__" for side in sides)
    )


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether a recipe's words ask its parser for help."""
    return "-h" in arguments or "--help" in arguments


@contextlib.contextmanager
def panda_group_in_help() -> Iterator[None]:
    """Give the parser that reads the recipe's command line a ``PANDA`` group in its ``--help``."""
    original = argparse.ArgumentParser.parse_known_args
    seen: list[argparse.ArgumentParser] = []

    @functools.wraps(original)
    def parse_known_args(
        self: argparse.ArgumentParser, args: Any = None, namespace: Any = None, **kwargs: Any
    ) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        if words == sys.argv[1:] and self not in seen:
            seen.append(self)
            add_panda_arguments(self)
        return original(self, args, namespace, **kwargs)

    argparse.ArgumentParser.parse_known_args = parse_known_args  # type: ignore
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_known_args = original  # type: ignore
