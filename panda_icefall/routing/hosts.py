"""The host libraries' functions: those that are replaced, by their signatures, and other losses."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from panda_icefall.routing.errors import PandaError, UnknownSignatureError

__all__ = [
    "HOSTS",
    "OWN_FUNCTIONS",
    "REPLACED_NAMES",
    "SYMBOLS",
    "Kind",
    "Symbol",
    "as_k2_arguments",
    "functions_to_replace",
    "names_of",
    "patched_module",
    "substituted",
    "warn_of_other_names",
]

# The project's own functions, the main host where k2 is not installed.
OWN_FUNCTIONS = "panda_icefall.rnnt"
HOSTS = ("k2", "fast_rnnt", OWN_FUNCTIONS)
# Routed beside the main host, where they are installed; torchaudio, which takes long to import,
# once it is imported.
_FURTHER_HOSTS = ("fast_rnnt", OWN_FUNCTIONS, "optimized_transducer", "torchaudio.functional")
_ONLY_IF_IMPORTED = ("torchaudio.functional",)
# Packages that recipes import in their forward, and what takes their place where they are missing.
_SUBSTITUTES = {"optimized_transducer": "panda_icefall.losses.of_logits"}


class Kind(Enum):
    """What a function of a host is for; the first five kinds are replaced, CTC where asked for."""

    PRUNING = "pruning"
    PRUNED_LOSS = "pruned loss"
    SIMPLE_LOSS = "simple loss"
    FULL_LOSS = "full-lattice loss"
    PRUNE_RANGES = "prune ranges"
    CTC_LOSS = "CTC loss"
    OTHER_LOSS = "other loss"


@dataclass(frozen=True)
class Symbol:
    """One function of host libraries.

    Attributes:
      name: in the hosts' modules.
      kind: what it is for.
      signatures: the parameters it may have, to be replaced; empty: it never is. Newer versions may
        have further ones behind them, each with a default.
      hosts: modules that may have it.
    """

    name: str
    kind: Kind
    signatures: tuple[tuple[str, ...], ...] = ()
    hosts: tuple[str, ...] = HOSTS

    @property
    def is_replaced(self) -> bool:
        return bool(self.signatures)

    @property
    def is_loss(self) -> bool:
        return self.kind not in (Kind.PRUNING, Kind.PRUNE_RANGES)

    def further_parameters(self, function: Callable[..., Any]) -> tuple[str, ...] | None:
        """What a function has behind the longest of the signatures that it begins with.

        None: it begins with none of them, or what follows has no default.
        """
        parameters = list(inspect.signature(function).parameters.values())
        names = tuple(parameter.name for parameter in parameters)
        begun = [len(known) for known in self.signatures if names[: len(known)] == known]
        further = parameters[max(begun, default=0) :]
        if not begun or any(p.default is inspect.Parameter.empty for p in further):
            return None
        return tuple(parameter.name for parameter in further)


HostFunction = tuple[ModuleType, Symbol, Callable[..., Any]]

_LOSS = ("logits", "symbols", "ranges", "termination_symbol", "boundary")
_SIMPLE = ("lm", "am", "symbols", "termination_symbol")
_FULL = ("logits", "symbols", "termination_symbol")
_LENGTHS = ("logits", "targets", "logit_lengths", "target_lengths", "blank")
_SCALES = ("lm_only_scale", "am_only_scale")
_TYPE = ("rnnt_type", "delay_penalty", "reduction")
_OLD_TYPE = ("modified", "reduction")  # of fast_rnnt's first versions

SYMBOLS = (
    Symbol("do_rnnt_pruning", Kind.PRUNING, (("am", "lm", "ranges"),)),
    Symbol(
        "rnnt_loss_pruned",
        Kind.PRUNED_LOSS,
        (
            (*_LOSS, *_TYPE),
            (*_LOSS, *_TYPE, "use_hat_loss"),
            (*_LOSS, *_TYPE, "return_grad"),  # fast_rnnt 1.3
            (*_LOSS, *_TYPE, "use_hat_loss", "return_grad"),  # the project's own
            (*_LOSS, *_OLD_TYPE),
        ),
    ),
    Symbol(
        "rnnt_loss_smoothed",
        Kind.SIMPLE_LOSS,
        tuple((*_SIMPLE, *_SCALES, "boundary", *t, "return_grad") for t in (_TYPE, _OLD_TYPE)),
    ),
    Symbol(
        "rnnt_loss_simple",
        Kind.SIMPLE_LOSS,
        tuple((*_SIMPLE, "boundary", *t, "return_grad") for t in (_TYPE, _OLD_TYPE)),
    ),
    Symbol(
        "get_rnnt_prune_ranges",
        Kind.PRUNE_RANGES,
        (("px_grad", "py_grad", "boundary", "s_range"),),
    ),
    Symbol(
        "rnnt_loss",
        Kind.FULL_LOSS,
        (
            *((*_FULL, "boundary", *t) for t in (_TYPE, _OLD_TYPE)),
            (*_FULL, "boundary", *_TYPE, "return_grad"),  # fast_rnnt 1.3
            (*_FULL, "boundary", *_TYPE, "return_grad", "use_hat_loss"),
            (*_LENGTHS, "clamp", "reduction"),
            (*_LENGTHS, "clamp", "reduction", "fused_log_softmax"),
        ),
        hosts=(*HOSTS, "torchaudio.functional"),
    ),
    Symbol("ctc_loss", Kind.OTHER_LOSS, hosts=("k2",)),
    Symbol("ctc_loss", Kind.CTC_LOSS, hosts=("torch.nn.functional",)),
    Symbol(
        "transducer_loss",
        Kind.FULL_LOSS,
        ((*_LENGTHS, "reduction", "one_sym_per_frame", "from_log_softmax"),),
        hosts=("optimized_transducer",),
    ),
)
# Those that a recipe has to look up in their module; a name bound to k2's prune ranges does what k2
# does.
REPLACED_NAMES = tuple(
    symbol.name for symbol in SYMBOLS if symbol.is_replaced and symbol.kind is not Kind.PRUNE_RANGES
)


def names_of(kind: Kind) -> tuple[str, ...]:
    """Names of the functions of one kind."""
    return tuple(symbol.name for symbol in SYMBOLS if symbol.kind is kind)


def loaded_functions(kind: Kind) -> list[tuple[ModuleType, str]]:
    """Where functions of one kind are in the main host and in those that are loaded: each once."""
    main = patched_module()
    found = {}
    for symbol in (s for s in SYMBOLS if s.kind is kind):
        for host in symbol.hosts:
            module = main if host == main.__name__ else sys.modules.get(host)
            if module is not None and callable(getattr(module, symbol.name, None)):
                found[module.__name__, symbol.name] = module
    return [(module, name) for (_, name), module in found.items()]


def patched_module() -> ModuleType:
    """The main host: k2 where it is installed, else the project's own functions."""
    return _loaded("k2") or importlib.import_module(OWN_FUNCTIONS)


def functions_to_replace() -> list[HostFunction]:
    """Those of the main host and of the further ones: module, symbol, and the function itself.

    Raises:
      PandaError: the main host lacks one of the pruned loss.
      UnknownSignatureError: one of the main host's lacks a known parameter, or has another one
        without a default. Of a further host that is logged, and all of that host is left alone.
    """
    main = patched_module()
    found = _found_in(main)
    for name in _FURTHER_HOSTS:
        if name not in (main.__name__, *awaited_hosts()):
            found += functions_of(name)
    return found


def awaited_hosts() -> list[str]:
    """Further hosts whose functions are replaced once somebody has imported them."""
    return [name for name in _ONLY_IF_IMPORTED if name not in sys.modules]


def functions_of(name: str) -> list[HostFunction]:
    """Those to replace of a further host; none, which may be logged, where it is not to be used."""
    try:
        module = _loaded(name)
        if module is None and name in _SUBSTITUTES:
            module = _substitute(name)
        return [] if module is None else _found_in(module)
    except (ImportError, OSError, PandaError) as error:
        logging.warning("panda: the losses of %s are not routed: %s", name, error)
        return []


def install_substitutes(found: list[HostFunction]) -> dict[str, ModuleType]:
    """Let recipes import packages that are not installed, and whose function we have.

    Args:
      found: the functions that are replaced.

    Returns:
      The modules that stand in ``sys.modules`` for them.
    """
    modules = {module.__name__: module for module, _, _ in found}
    missing = {name: modules[name] for name in _SUBSTITUTES if name in modules}
    missing = {name: module for name, module in missing.items() if name not in sys.modules}
    sys.modules.update(missing)
    return missing


@contextmanager
def substituted() -> Iterator[None]:
    """In the block recipes can import packages of losses that are not installed, as our own."""
    missing = {
        name: _substitute(name)
        for name in _SUBSTITUTES
        if name not in sys.modules and importlib.util.find_spec(name) is None
    }
    sys.modules.update(missing)
    try:
        yield
    finally:
        for name, module in missing.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _substitute(name: str) -> ModuleType:
    """A module of a package that is not installed."""
    ours = importlib.import_module(_SUBSTITUTES[name])
    module = importlib.util.module_from_spec(ModuleSpec(name, None))
    module.__doc__ = f"{name} is not installed; its functions are {ours.__name__}'s."
    for symbol in SYMBOLS:
        if name in symbol.hosts:
            setattr(module, symbol.name, getattr(ours, symbol.name))
    return module


def _loaded(name: str) -> ModuleType | None:
    """The module of that name, imported if it is installed."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    # A folder that happens to be called k2 (a checkout in the working directory) has no origin.
    return importlib.import_module(name) if spec is not None and spec.origin is not None else None


def _found_in(module: ModuleType) -> list[HostFunction]:
    version = getattr(module, "__dev_version__", getattr(module, "__version__", "unknown"))
    found = []
    for symbol in (s for s in SYMBOLS if s.is_replaced and module.__name__ in s.hosts):
        where = f"{module.__name__}.{symbol.name}"
        function = getattr(module, symbol.name, None)
        if function is None:
            if symbol.kind not in (Kind.PRUNING, Kind.PRUNED_LOSS):
                continue
            raise PandaError(
                f"{where}: not found in version {version}; expected a {module.__name__} that has it"
            )
        if symbol.further_parameters(function) is None:
            expected = " or ".join(f"({', '.join(names)})" for names in symbol.signatures)
            raise UnknownSignatureError(
                f"{where} of version {version}: got {inspect.signature(function)}, expected the "
                f"parameters {expected}, and behind them such as have defaults; this "
                f"{module.__name__} is not supported"
            )
        found.append((module, symbol, function))
    return found


def as_k2_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A loss's arguments by the names k2 1.23.4 and later give them."""
    given = {"delay_penalty": 0.0, **arguments}
    if "modified" in given:
        given["rnnt_type"] = "modified" if given.pop("modified") else "regular"
    return given


def warn_of_other_names(found: list[HostFunction], said: set[tuple[str, str]]) -> None:
    """Log where loaded modules hold originals by names of their own, which stay the originals.

    Args:
      found: the functions that are about to be replaced.
      said: module and name of what was logged before, which is not logged again; added to.
    """
    names = {
        id(f): f"{module.__name__}.{symbol.name}"
        for module, symbol, f in found
        if symbol.name in REPLACED_NAMES
    }
    owners = {n.partition(".")[0] for n in (__name__, *(m.__name__ for m, _, _ in found))}
    for module_name, module in list(sys.modules.items()):
        # Objects of other kinds compute their attributes.
        if not isinstance(module, ModuleType) or module_name.partition(".")[0] in owners:
            continue
        if module_name == "__mp_main__":  # multiprocessing's second name of __main__
            continue
        for name, value in list(vars(module).items()):
            if id(value) not in names or (module_name, name) in said:
                continue
            said.add((module_name, name))
            logging.warning(
                "panda: %s.%s is %s from before apply(), and calls of it are not routed; call "
                "%s() instead, or import the name after apply()",
                module_name, name, names[id(value)], names[id(value)],
            )  # fmt: skip
