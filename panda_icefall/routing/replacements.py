"""What is replaced, and put back: attributes of modules and classes, and how k2's must look."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable

from panda_icefall.routing.errors import PandaError, UnknownSignatureError

STAND_IN = "panda_icefall.losses.k2_functions"
MISSING: Any = object()

_PRUNING = ("am", "lm", "ranges")
_LOSS = (
    "logits symbols ranges termination_symbol boundary rnnt_type delay_penalty reduction"
).split()
_SIMPLE = ("lm", "am", "symbols", "termination_symbol")
_SIMPLE_OPTIONS = ("boundary", "rnnt_type", "delay_penalty", "reduction", "return_grad")
_KNOWN_SIGNATURES: dict[str, tuple[tuple[str, ...], ...]] = {
    "do_rnnt_pruning": (_PRUNING,),
    "rnnt_loss_pruned": (tuple(_LOSS), (*_LOSS, "use_hat_loss")),
    "rnnt_loss_smoothed": ((*_SIMPLE, "lm_only_scale", "am_only_scale", *_SIMPLE_OPTIONS),),
    "rnnt_loss_simple": ((*_SIMPLE, *_SIMPLE_OPTIONS),),
}


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


def patched_module() -> ModuleType:
    """Where functions are replaced: k2 where it is installed, else the project's own functions."""
    if "k2" in sys.modules:
        return sys.modules["k2"]
    spec = importlib.util.find_spec("k2")
    # A folder that happens to be called k2 (a checkout in the working directory) has no origin.
    is_installed = spec is not None and spec.origin is not None
    return importlib.import_module("k2" if is_installed else STAND_IN)


def known_function(module: ModuleType, name: str) -> Callable[..., Any]:
    """The function to replace, if it is one we know.

    Raises:
      PandaError: it is missing.
      UnknownSignatureError: it has other parameters than those known.
    """
    where = f"{module.__name__}.{name}"
    function = getattr(module, name, None)
    version = getattr(module, "__dev_version__", getattr(module, "__version__", "unknown"))
    if function is None:
        raise PandaError(f"{where}: not found in version {version}; expected a k2 that has it")
    found = inspect.signature(function)
    known = _KNOWN_SIGNATURES[name]
    if tuple(found.parameters) not in known:
        expected = " or ".join(f"({', '.join(names)})" for names in known)
        raise UnknownSignatureError(
            f"{where} of version {version}: got {found}, expected the parameters {expected}; "
            f"this k2 is not supported"
        )
    return function
