"""Where the time of one step of PANDA goes: by part of the loss, and by kind of operation."""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity

import panda_icefall
from benchmarks.arms import Step

RECURSIONS = "recursions forward"
WHOLE = "the whole step"
# Functions outside the counters' tiles that have a share of their own: the names they are called
# by.
TIMED: dict[str, tuple[str, ...]] = {
    RECURSIONS: (
        "panda_icefall.losses.lattices.full.unchecked_recursion",
        "panda_icefall.losses.lattices.pruned.banded_recursion",
    ),
    "checks": (
        "panda_icefall.losses.sites.check_form",
        "panda_icefall.losses.sites.check_values",
        "panda_icefall.losses.simple_tiled.loss.check_spec",
        "panda_icefall.normalizer.op.check_form",
    ),
    "bands": ("panda_icefall.rnnt.get_rnnt_prune_ranges",),
}
# Inside the counters: a part of the pruned backward, not beside it.
INSIDE: dict[str, tuple[str, ...]] = {
    "of it: choice of the sites that matter": ("panda_icefall.normalizer.node._sites_that_matter",),
}
COUNTED = {
    "pruned forward": "forward_seconds",
    "pruned backward": "backward_seconds",
    "simple forward": "simple_forward_seconds",
    "simple backward": "simple_backward_seconds",
}
REST = "the rest: joiner's projections, routing, autograd, allocation"

# The first kind whose word an operation's name has.
KINDS: dict[str, tuple[str, ...]] = {
    "matrix products": ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv"),
    "exponentials and logarithms": ("exp", "log", "logaddexp", "sigmoid", "tanh", "tanh_backward"),
    "sums and maxima": ("sum", "amax", "max", "min", "cumsum", "cummin", "any", "mean"),
    "fills and allocation": ("empty", "zero", "zeros", "fill", "full", "resize", "empty_strided",
                             "new_zeros", "new_full", "masked_fill"),
    "gathers and scatters": ("gather", "index", "index_select", "index_put", "_index_put_impl",
                             "index_add", "scatter", "scatter_add", "index_copy"),
    "copies": ("copy", "clone", "contiguous", "cat", "stack", "to", "_to_copy"),
    "elementwise": ("add", "sub", "mul", "div", "neg", "where", "maximum", "addcmul", "abs",
                    "reciprocal", "lt", "le", "gt", "ge", "eq", "ne", "bitwise_and", "bitwise_or",
                    "isinf", "isnan", "isfinite", "rsub"),
    "sorts": ("sort", "argsort", "topk", "argmax"),
}  # fmt: skip
OTHER = "views and the interpreter's calls"


def parts_of(step: Step) -> dict[str, float]:
    """Seconds of one step by its parts; those of `INSIDE` are in others, the others add up."""
    seconds: dict[str, float] = dict.fromkeys((*TIMED, *INSIDE), 0.0)
    with contextlib.ExitStack() as stack:
        for part, names in (*TIMED.items(), *INSIDE.items()):
            for name in names:
                stack.enter_context(_timed(name, part, seconds))
        begin = time.perf_counter()
        step.run()
        whole = time.perf_counter() - begin
    status = panda_icefall.status()
    counted = {part: getattr(status, field) for part, field in COUNTED.items()}
    beside = sum(counted.values()) + sum(seconds[part] for part in TIMED)
    return {**counted, **seconds, REST: whole - beside, WHOLE: whole}


@contextlib.contextmanager
def _timed(name: str, part: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add a function's time to a part while it is called by this name."""
    module_name, function_name = name.rsplit(".", 1)
    module = importlib.import_module(module_name)
    original: Callable[..., Any] | None = getattr(module, function_name, None)
    if original is None:
        raise AttributeError(f"{name}: not there, expected it for the part {part!r}; rename it in "
                             "scripts/benchmarks/profile.py")  # fmt: skip
    called = original

    @functools.wraps(called)  # its signature is looked at
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return called(*args, **kwargs)
        finally:
            seconds[part] += time.perf_counter() - begin

    with mock.patch.object(module, function_name, timed):
        yield


def kinds_of(step: Step) -> dict[str, float]:
    """Seconds of one step by kind of operation, as torch's profiler attributes them."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
        step.run()
    seconds: dict[str, float] = {}
    for event in profile.key_averages():
        kind = kind_of(event.key)
        seconds[kind] = seconds.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def kind_of(operation: str) -> str:
    """The kind of an operation by its name, ``aten::exp_``."""
    word = operation.rsplit("::", 1)[-1].rstrip("_")
    if not operation.startswith("aten::"):
        return OTHER
    return next((kind for kind, words in KINDS.items() if word in words), OTHER)
