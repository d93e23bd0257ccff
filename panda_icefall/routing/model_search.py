"""Searches of models for modules, each done once: a walk over a thousand modules at every step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

from torch import nn

Modules = dict[str, nn.Module]  # by their full names


class ModelSearch:
    """Remembers where the modules are that were found in a model; keeps no module alive."""

    def __init__(self) -> None:
        self._places: weakref.WeakKeyDictionary[
            nn.Module, dict[Hashable, dict[str, weakref.ref[nn.Module]]]
        ] = weakref.WeakKeyDictionary()

    def modules(
        self, model: nn.Module, key: Hashable, find: Callable[[nn.Module], Modules]
    ) -> Modules:
        """What ``find`` gives for the model.

        It is not called again for the same key while the modules that it gave are where they were.
        A module that would be found besides, because it came later, is not: ``forget`` first.
        """
        places = self._places.setdefault(model, {})
        if key in places:
            now = {path: module_at(model, path) for path in places[key]}
            found = {p: m for p, m in now.items() if m is not None and m is places[key][p]()}
            if len(found) == len(now):
                return found
        found = find(model)
        places[key] = {path: weakref.ref(module) for path, module in found.items()}
        return found

    def forget(self, model: nn.Module) -> None:
        """Search the model again when it is asked about."""
        self._places.pop(model, None)


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module of that full name, the model itself for an empty one; None: there is none."""
    module: nn.Module | None = model
    for name in path.split(".") if path else ():
        # No attribute of the recipe's own is read, which may be computed.
        if module is None or name not in module._modules:
            return None
        module = module._modules[name]
    return module
