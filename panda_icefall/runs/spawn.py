"""``torch.multiprocessing.spawn`` with PANDA in the children."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch.multiprocessing

from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.session import TrainingSession

__all__ = ["ChildEntry", "panda_in_children"]


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
        with session.running():
            if "train_one_epoch" in namespace:
                session.install(namespace, self.train_py)
            self.function(rank, *args)


def _globals_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The globals in which ``function`` looks names up.

    In a spawned child they are not those of ``sys.modules["__main__"]``, which holds a copy.
    """
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__globals__", sys.modules["__main__"].__dict__)


@contextlib.contextmanager
def panda_in_children(
    options: PandaOptions, train_py: Path, outcome_folder: Path
) -> Iterator[list[int]]:
    """Replace ``torch.multiprocessing.spawn`` so that its children train with ``options``.

    Yields the ranks spawned so far.
    """
    original = torch.multiprocessing.spawn
    ranks: list[int] = []

    @functools.wraps(original)
    def spawn(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nprocs = inspect.signature(original).bind(fn, *args, **kwargs).arguments.get("nprocs", 1)
        ranks[:] = range(nprocs)
        entry = ChildEntry(fn, options, str(train_py), str(outcome_folder))
        return original(entry, *args, **kwargs)

    torch.multiprocessing.spawn = spawn
    try:
        yield ranks
    finally:
        torch.multiprocessing.spawn = original
