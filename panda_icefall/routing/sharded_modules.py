"""FSDP2: its modules free their parameters when their forward is over, and gather them again here.

What is computed later from recorded parameters, a loss or a tensor, runs as one more forward of the
modules that gathered them (``register_fsdp_forward_method``). FSDP's own hooks then gather them
before it, free them after it, gather them for its backward and reduce their gradients.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from panda_icefall.dynamo import opaque

__all__ = [
    "compute_dtypes",
    "has_base",
    "in_forward_of",
    "is_fully_sharded",
    "note_gathered",
    "sharded_forward",
]

_Result = TypeVar("_Result")

_METHOD = "_panda_icefall_loss"
_now = threading.local()  # modules whose forward runs in this thread, outermost first
_gathered_by: Any = None  # recorded tensors, and by which modules; made at the first one


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``torch.distributed.fsdp.fully_shard`` was called on this very module.

    That of torch before 2.6, which lets no loss run as one more forward, does not count.
    """
    # It names the classes it makes so; asked at every call of a module.
    is_named = type(module).__name__.startswith("FSDP")
    return is_named and has_base(module, "FSDPModule") and _runs_losses()


def has_base(module: nn.Module, name: str) -> bool:
    """Whether a module is of this class of ``torch.distributed``."""
    return any(
        base.__name__ == name and base.__module__.startswith("torch.distributed.")
        for base in type(module).__mro__
    )


@functools.cache
def _runs_losses() -> bool:
    import torch.distributed.fsdp as fsdp

    return hasattr(fsdp, "register_fsdp_forward_method")


def compute_dtypes(module: nn.Module) -> tuple[torch.dtype | None, torch.dtype | None]:
    """What FSDP2's ``mp_policy`` casts the module's inputs and outputs to; None: it does not.

    It casts tensors, and passes by what stands for them.
    """
    state = getattr(module, "_get_fsdp_state", lambda: None)()
    policy = getattr(state, "_mp_policy", None)
    if policy is None:
        return None, None
    return policy.param_dtype if policy.cast_forward_inputs else None, policy.output_dtype


@contextmanager
def sharded_forward(module: nn.Module) -> Iterator[None]:
    """The forward of a module that FSDP2 shards runs in the enclosed block."""
    running = _running()
    running.append(module)
    try:
        yield
    finally:
        running.pop()


def _running() -> list[nn.Module]:
    return _now.__dict__.setdefault("modules", [])


def note_gathered(tensors: Sequence[Tensor]) -> None:
    """Remember that these were recorded while they are gathered, by the modules that run now."""
    global _gathered_by
    running = _running()
    if not running:
        return
    if _gathered_by is None:
        from torch.utils.weak import WeakIdKeyDictionary  # there where FSDP2 is

        _gathered_by = WeakIdKeyDictionary()
    for tensor in tensors:
        # Weak, for a module holds the parameters that are keys here.
        _gathered_by[tensor] = tuple(weakref.ref(module) for module in running)


def in_forward_of(tensors: Sequence[Tensor], compute: Callable[[], _Result]) -> _Result:
    """``compute()``, in a forward of the FSDP2 modules that had gathered these tensors.

    Of those whose forward runs anyway none is begun.

    Args:
      tensors: that it reads.
      compute: gives a tensor, or a tuple of tensors.
    """
    if _gathered_by is None:
        return compute()
    found: dict[int, nn.Module] = {}
    for tensor in tensors:
        for reference in _gathered_by.get(tensor, ()):
            module = reference()
            if module is not None:
                found[id(module)] = module
    running = {id(module) for module in _running()}
    waiting = [module for key, module in found.items() if key not in running]
    for module in reversed(waiting):
        compute = functools.partial(_as_forward, module, compute)
    return compute()


@opaque
def _as_forward(module: nn.Module, compute: Callable[[], _Result]) -> _Result:
    from torch.distributed.fsdp import register_fsdp_forward_method

    results: list[_Result] = []

    def method() -> Any:
        results.append(compute())
        return results[0]

    setattr(module, _METHOD, method)
    try:
        register_fsdp_forward_method(module, _METHOD)
        with sharded_forward(module):
            getattr(module, _METHOD)()
    finally:
        delattr(module, _METHOD)
    # Not what the method gave, which FSDP may have cast (``output_dtype``); its hooks are on these.
    return results[0]
