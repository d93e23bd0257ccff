"""A recipe's data loaders with room for decisions between two batches."""

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["BatchFeed", "FirstBatchOnly"]


class BatchFeed:
    """Stands for a training data loader and asks before each of its batches.

    A recipe asks for its next batch outside the ``try`` that it puts around ``compute_loss``, so
    an exception of ``before_batch`` ends the run without the recipe's "bad model" checkpoint.
    Everything but iteration (``sampler``, ``dataset``, ``len``, ...) is the loader's own.

    Args:
      loader: The recipe's data loader.
      before_batch: Called before each request; ``False`` ends the epoch there.
    """

    def __init__(self, loader: Any, before_batch: Callable[[], bool]) -> None:
        self._loader = loader
        self._before_batch = before_batch

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while self._before_batch():
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)


class FirstBatchOnly(BatchFeed):
    """Stands for a validation data loader of which one batch is enough."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader, lambda: True)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            return
