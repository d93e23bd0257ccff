"""``Replacement``: an attribute of a module, a class or an object that is replaced and put back."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

MISSING: Any = object()


@dataclass(frozen=True, eq=False)
class Replacement:
    """One attribute, ours and what stood there (``MISSING``: inherited).

    Attributes:
      owner: a Python module, a class, or a ``torch.nn.Module``.
      name: of the attribute.
      original, ours: what it was and what it becomes.
      full_name: for messages.
    """

    owner: Any
    name: str
    original: Any
    ours: Any
    full_name: str

    @classmethod
    def of(cls, owner: Any, name: str, ours: Any, full_name: str | None = None) -> Replacement:
        """Of what stands there now; ``full_name`` is made up for modules and classes."""
        if full_name is None:
            prefix = "" if isinstance(owner, ModuleType) else f"{owner.__module__}."
            full_name = f"{prefix}{owner.__name__}.{name}"
        return cls(owner, name, vars(owner).get(name, MISSING), ours, full_name)

    def install(self) -> None:
        setattr(self.owner, self.name, self.ours)

    def remove(self) -> bool:
        """Put the original back; False if somebody else has replaced ours since."""
        if vars(self.owner).get(self.name) is not self.ours:
            return False
        if self.original is MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)
        return True
