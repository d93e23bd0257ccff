"""``torch.multiprocessing.spawn`` with PANDA in the children."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.multiprocessing

from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.session import TrainingSession
from panda_icefall.runs.termination import TO_CHILDREN, ended_by, ending_children
from panda_icefall.swaps import Swaps

__all__ = ["ChildEntry", "SpawnedChildren"]


@dataclass(frozen=True)
class ChildEntry:
    """What a spawned child runs in place of the recipe's own function; pickled on the way.

    Attributes:
      function: The recipe's function, pickled by its name in ``__main__``: the child has imported
        the recipe under that name already.
      options: What the user asked for.
      train_py: The recipe's path, for errors.
      outcome_folder: Where the child leaves its outcome for the parent.
    """

    function: Callable[..., Any]
    options: PandaOptions
    train_py: str
    outcome_folder: str

    def __call__(self, rank: int, *args: Any) -> None:
        """Install PANDA in this process, then run the function with ``rank`` and ``args``."""
        session = TrainingSession(self.options, rank, Path(self.outcome_folder))
        namespace = _globals_of(self.function)
        with ended_by(TO_CHILDREN), session.running():
            if "train_one_epoch" in namespace:
                session.install(namespace, self.train_py)
            self.function(rank, *args)


def _globals_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The globals in which ``function`` looks names up.

    In a spawned child they are not those of ``sys.modules["__main__"]``, which holds a copy.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)  # a decorator's module is not where the recipe lives
    return getattr(function, "__globals__", sys.modules["__main__"].__dict__)


class SpawnedChildren(contextlib.AbstractContextManager):
    """Replaces ``torch.multiprocessing.spawn``, so that its children train with PANDA.

    Args:
      options: What the user asked for.
      train_py: The recipe's path, for errors.
      outcome_folder: Where the children leave their outcomes.

    Attributes:
      ranks: The ranks spawned so far.
    """

    def __init__(self, options: PandaOptions, train_py: Path, outcome_folder: Path) -> None:
        self.ranks: list[int] = []
        self._swaps = Swaps()
        self._original = original = torch.multiprocessing.spawn

        @functools.wraps(original)
        def spawn(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(original).bind(fn, *args, **kwargs).arguments
            self.ranks[:] = range(given.get("nprocs", 1))
            entry = ChildEntry(fn, options, str(train_py), str(outcome_folder))
            with ending_children():
                return original(entry, *args, **kwargs)

        self._replacement = spawn

    def __enter__(self) -> "SpawnedChildren":
        self.replace_in(vars(torch.multiprocessing))
        return self

    def replace_in(self, namespace: dict[str, Any]) -> None:
        """Replace the function under every name of ``namespace`` that is bound to it already."""
        for name, value in list(namespace.items()):
            if value is self._original:
                self._swaps.replace(namespace, name, self._replacement)

    def __exit__(self, *_: object) -> None:
        self._swaps.undo()
