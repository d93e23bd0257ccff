"""Calls of modules with stand-ins: what cannot do without a tensor is given one, and goes on."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn

from panda_icefall.dynamo import opaque
from panda_icefall.routing.observing import say_blind_hooks
from panda_icefall.routing.recorded_joiners import (
    has_recorded_joiner,
    recorded_arguments,
    running,
)
from panda_icefall.routing.recorded_projections import recorded_projection
from panda_icefall.routing.sharded_modules import (
    compute_dtypes,
    has_base,
    is_fully_sharded,
    sharded_forward,
)
from panda_icefall.routing.stand_in import StandIn, as_tensors

# Modules that raised on a stand-in, and how counters name that.
_refusals: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_stance_lock = threading.Lock()
_eager_users = 0
_eager_stance: Any = None


def module_call(original: Callable[..., Any]) -> Callable[..., Any]:
    """``nn.Module.__call__`` that knows projections, and stand-ins given or, to FSDP, taken."""

    def run(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _stand_ins((*args, *kwargs.values())):
            return _call_recorded(original, self, args, kwargs)
        if (recorded := recorded_arguments(self, args, kwargs)) is not None:
            return _call_recorded(original, self, *recorded)
        if (projection := recorded_projection(self)) is not None:
            result = projection.call(original, args, kwargs)
        elif has_recorded_joiner(self):
            with running(self):
                result = original(self, *args, **kwargs)
        else:
            result = original(self, *args, **kwargs)
        if "_is_fsdp_managed_module" in self.__dict__ and _is_called_by_fsdp(self):
            # It waits for the gradient of a tensor, to gather its parameters again.
            result = as_tensors(result, "FullyShardedDataParallel")
        return result

    @functools.wraps(original)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not is_fully_sharded(self):
            return run(self, args, kwargs)
        of_inputs, of_output = compute_dtypes(self)
        args = tuple(_cast(value, of_inputs) for value in args)
        kwargs = {name: _cast(value, of_inputs) for name, value in kwargs.items()}
        with sharded_forward(self):
            return _cast(run(self, args, kwargs), of_output)

    return call


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """A stand-in of floating point numbers in another dtype; others as they are."""
    is_cast = isinstance(value, StandIn) and dtype is not None and value.dtype.is_floating_point
    return value.to(dtype) if is_cast else value


def _stand_ins(arguments: tuple[Any, ...]) -> list[StandIn]:
    """Those among the arguments of a call, and in lists, tuples and dicts that are arguments."""
    found = []
    for value in arguments:
        if isinstance(value, StandIn):
            found.append(value)
        elif isinstance(value, (list, tuple, dict)):
            items = value.values() if isinstance(value, dict) else value
            found += [item for item in items if isinstance(item, StandIn)]
    return found


@opaque
def _is_called_by_fsdp(module: nn.Module) -> bool:
    """Whether it is FSDP (1) that runs this module, which is the one it wraps."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner is not module:
            return getattr(owner, "_fsdp_wrapped_module", None) is module
        frame = frame.f_back
    return False


def _is_fsdp(module: nn.Module) -> bool:
    """Whether an FSDP takes its parameters away once its forward is over, and gives none back.

    The first kind; and the second one of torch before 2.6.
    """
    is_second = has_base(module, "FSDPModule") and not is_fully_sharded(module)
    return is_second or has_base(module, "FullyShardedDataParallel")


@opaque
def _call_recorded(
    original: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a module on stand-ins; if it raises, run it again on the tensors they stand for.

    It asks for a tensor in a way that nobody else answers (``isinstance``, an extension in C++),
    or it is wrong with tensors too, and then its own error is raised the second time. The second
    run begins with the random state and the buffers of the first; later calls begin with tensors.
    """
    refusal = "FSDP" if _is_fsdp(module) else _refusals.get(module)
    if refusal is not None:
        return original(module, *as_tensors(args, refusal), **as_tensors(kwargs, refusal))
    given = _stand_ins((*args, *kwargs.values()))
    before = [dict(vars(value)) for value in given]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    drawn_from = random_states(given[0].device)
    try:
        with _not_compiled():
            result = original(module, *args, **kwargs)
    except Exception as error:
        if _is_final(error):
            raise
        name = f"{type(module).__name__}, which raised {type(error).__name__}"
        logging.info("panda: %s: %s", name, error)
        _refusals[module] = name
    else:
        if isinstance(result, StandIn) and not result.is_materialised:
            say_blind_hooks(module)
        return result
    for value, state in zip(given, before):  # in-place operations would be done twice
        vars(value).clear()
        vars(value).update(state)
    for generator, random_state in drawn_from:
        generator.set_state(random_state)
    with torch.no_grad():
        for buffer, values in buffers:
            buffer.copy_(values)
    try:
        return original(module, *as_tensors(args, name), **as_tensors(kwargs, name))
    except Exception:
        # Its own error: with other arguments it may be recorded.
        _refusals.pop(module, None)
        raise


def forget_refusals() -> None:
    """Try recorded arguments on every module again."""
    _refusals.clear()


def random_states(device: torch.device) -> list[tuple[torch.Generator, torch.Tensor]]:
    """The default generators that a joiner on this device may draw from, and their states."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return [(generator, generator.get_state()) for generator in generators]


@contextlib.contextmanager
def _not_compiled() -> Iterator[None]:
    """Compiled code runs as it is written: recording it needs no graph, nor a new one per shape.

    The stance is one of the whole process: the first thread to ask sets it, the last restores it.
    """
    global _eager_stance, _eager_users
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with _stance_lock:
        if _eager_users == 0:
            _eager_stance = torch.compiler.set_stance("force_eager")
            _eager_stance.__enter__()
        _eager_users += 1
    try:
        yield
    finally:
        with _stance_lock:
            _eager_users -= 1
            if _eager_users == 0:
                _eager_stance.__exit__(None, None, None)


def _is_final(error: Exception) -> bool:
    """Whether PANDA itself raised it, memory ran out, or a checkpoint stops its second run."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if type(error).__module__ == "torch.utils.checkpoint":
        return True
    innermost: TracebackType | None = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    where = "" if innermost is None else innermost.tb_frame.f_globals.get("__name__", "")
    return where.startswith("panda_icefall.")
