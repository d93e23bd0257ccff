"""The host libraries: which of their functions are replaced, and the parameters these may have."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Callable

from panda_icefall.routing.errors import PandaError, UnknownSignatureError

__all__ = [
    "HOSTS",
    "REPLACED_NAMES",
    "SIMPLE_LOSSES",
    "STAND_IN",
    "as_k2_arguments",
    "bindings_elsewhere",
    "host_functions",
    "patched_module",
]

STAND_IN = "panda_icefall.losses.k2_functions"
# Routed beside the main host, k2 or its stand-in, where they are installed.
_FURTHER_HOSTS = ("fast_rnnt",)
HOSTS = ("k2", STAND_IN, *_FURTHER_HOSTS)

_PRUNING = ("am", "lm", "ranges")
_LOSS = ("logits", "symbols", "ranges", "termination_symbol", "boundary")
_SIMPLE = ("lm", "am", "symbols", "termination_symbol")
_SCALES = ("lm_only_scale", "am_only_scale")
_TYPE = ("rnnt_type", "delay_penalty", "reduction")
_OLD_TYPE = ("modified", "reduction")  # of fast_rnnt's first versions
_KNOWN_PARAMETERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "do_rnnt_pruning": (_PRUNING,),
    "rnnt_loss_pruned": (
        (*_LOSS, *_TYPE),
        (*_LOSS, *_TYPE, "use_hat_loss"),
        (*_LOSS, *_TYPE, "return_grad"),  # fast_rnnt 1.3
        (*_LOSS, *_OLD_TYPE),
    ),
    "rnnt_loss_smoothed": tuple(
        (*_SIMPLE, *_SCALES, "boundary", *kind, "return_grad") for kind in (_TYPE, _OLD_TYPE)
    ),
    "rnnt_loss_simple": tuple(
        (*_SIMPLE, "boundary", *kind, "return_grad") for kind in (_TYPE, _OLD_TYPE)
    ),
}
REPLACED_NAMES = tuple(_KNOWN_PARAMETERS)
SIMPLE_LOSSES = ("rnnt_loss_smoothed", "rnnt_loss_simple")


def patched_module() -> ModuleType:
    """The main host: k2 where it is installed, else the project's own functions."""
    return _loaded("k2") or importlib.import_module(STAND_IN)


def host_functions() -> list[tuple[ModuleType, str, Callable[..., Any]]]:
    """The functions to replace: module, name, and the function itself.

    Raises:
      PandaError: the main host lacks one of the pruned loss.
      UnknownSignatureError: one of the main host's has other parameters than those known. Of a
        further host that is logged, and all of that host is left alone.
    """
    main = patched_module()
    found = [(main, name, function) for name, function in _known_functions(main)]
    for name in _FURTHER_HOSTS:
        try:
            module = _loaded(name)
            if module is not None and module is not main:
                found += [(module, n, function) for n, function in _known_functions(module)]
        except (ImportError, OSError, PandaError) as error:
            logging.warning("panda: the losses of %s are not routed: %s", name, error)
    return found


def _loaded(name: str) -> ModuleType | None:
    """The module of that name, imported if it is installed."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    # A folder that happens to be called k2 (a checkout in the working directory) has no origin.
    return importlib.import_module(name) if spec is not None and spec.origin is not None else None


def _known_functions(module: ModuleType) -> list[tuple[str, Callable[..., Any]]]:
    version = getattr(module, "__dev_version__", getattr(module, "__version__", "unknown"))
    functions = []
    for name, known in _KNOWN_PARAMETERS.items():
        where = f"{module.__name__}.{name}"
        function = getattr(module, name, None)
        if function is None:
            if name in SIMPLE_LOSSES:
                continue
            raise PandaError(
                f"{where}: not found in version {version}; expected a {module.__name__} that has it"
            )
        found = inspect.signature(function)
        if tuple(found.parameters) not in known:
            expected = " or ".join(f"({', '.join(names)})" for names in known)
            raise UnknownSignatureError(
                f"{where} of version {version}: got {found}, expected the parameters {expected}; "
                f"this {module.__name__} is not supported"
            )
        functions.append((name, function))
    return functions


def as_k2_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A loss's arguments by the names k2 1.23.4 and later give them."""
    given = {"delay_penalty": 0.0, **arguments}
    if "modified" in given:
        given["rnnt_type"] = "modified" if given.pop("modified") else "regular"
    return given


def bindings_elsewhere(
    functions: Mapping[int, str], owners: set[str]
) -> Iterator[tuple[str, str, str]]:
    """Where loaded modules hold functions by names of their own, past a replacement in the host.

    Args:
      functions: id of a function -> its full name.
      owners: top-level packages whose own modules are not looked at.

    Yields:
      module, name in it, full name of the function.
    """
    for module_name, module in list(sys.modules.items()):
        # Objects of other kinds compute their attributes.
        if not isinstance(module, ModuleType) or module_name.partition(".")[0] in owners:
            continue
        for name, value in list(vars(module).items()):
            if id(value) in functions:
                yield module_name, name, functions[id(value)]
