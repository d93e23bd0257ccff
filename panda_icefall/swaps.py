"""Replace an attribute, and put it back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["MISSING", "Swap", "Swaps"]

MISSING: Any = object()


@dataclass(frozen=True, eq=False)
class Swap:
    """One attribute of an owner: what it was, and what takes its place.

    Attributes:
      owner: a module, a class, an object with a ``__dict__``, or a dict of globals.
      name: of the attribute, or the key.
      original: what the owner itself had; ``MISSING``: nothing, it may have inherited one.
      ours: what takes its place.
    """

    owner: Any
    name: str
    original: Any
    ours: Any

    @classmethod
    def of(cls, owner: Any, name: str, ours: Any) -> Swap:
        """A swap of what the owner has now."""
        return cls(owner, name, _namespace(owner).get(name, MISSING), ours)

    @property
    def full_name(self) -> str:
        """For messages: ``k2.rnnt_loss_pruned``; of modules and classes."""
        prefix = "" if isinstance(self.owner, ModuleType) else f"{self.owner.__module__}."
        return f"{prefix}{self.owner.__name__}.{self.name}"

    def install(self) -> None:
        """Put ours in place, whatever is there."""
        _set(self.owner, self.name, self.ours)

    def remove(self) -> bool:
        """Put the original back; False, and nothing is done, where ours is not in place."""
        if _namespace(self.owner).get(self.name, MISSING) is not self.ours:
            return False
        _set(self.owner, self.name, self.original)
        return True


class Swaps(contextlib.AbstractContextManager["Swaps"]):
    """Swaps that are installed one by one and undone together, the last one first.

    One that somebody else has replaced meanwhile is left as it is.
    """

    def __init__(self) -> None:
        self._installed: list[Swap] = []

    def replace(self, owner: Any, name: str, ours: Any) -> None:
        """Install one more; arguments as of ``Swap``."""
        swap = Swap.of(owner, name, ours)
        swap.install()
        self._installed.append(swap)

    def undo(self) -> None:
        """Put everything back; does nothing where nothing is installed."""
        while self._installed:
            self._installed.pop().remove()

    def __exit__(self, *_: object) -> None:
        self.undo()


def _namespace(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else vars(owner)


def _set(owner: Any, name: str, value: Any) -> None:
    if value is MISSING:
        if isinstance(owner, dict):
            del owner[name]
        else:
            delattr(owner, name)
    elif isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)
