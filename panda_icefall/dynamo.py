"""What torch.compile is not to look into, and whether torch traces what runs now."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def opaque(function: F) -> F:
    """Run ``function``, and all that it calls, as without ``torch.compile``.

    The tiles, the checks of values and the loops over fronts would be traced into a hundred
    graphs, again for every shape, and inductor computes the lattice's loop wrongly, see
    ``panda_icefall.lattice.recursion``.

    Returns:
      A function of the same name and signature, which breaks the graph of a caller that is
      compiled. ``torch.compiler.disable`` does the same, but imports ``torch._dynamo`` at once,
      which takes seconds; here only those who compile import it.
    """

    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def run_uncompiled(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None:
            return function(*args, **kwargs)
        if disabled is None:
            # Else dynamo compiles this very frame, again for every shape of the arguments.
            dynamo.eval_frame.skip_code(run_uncompiled.__code__)  # type: ignore[attr-defined]
            disabled = dynamo.disable(function)
        return disabled(*args, **kwargs)

    # What torch.compiler.disable leaves on a function, and what dynamo says where it may not break.
    run_uncompiled._torchdynamo_disable = True  # type: ignore[attr-defined]
    run_uncompiled._torchdynamo_disable_msg = "PANDA's losses are not compiled"  # type: ignore[attr-defined]
    return cast(F, run_uncompiled)


def is_traced() -> bool:
    """``torch.jit.trace``, ``torch.onnx.export``, ``torch.export`` or ``make_fx`` is at work.

    An exported model is to hold k2's operations and no object of PANDA's.
    """
    if torch.jit.is_tracing():
        return True
    is_exporting = getattr(getattr(torch, "compiler", None), "is_exporting", None)
    if is_exporting is not None and is_exporting():
        return True
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    proxy_mode = getattr(proxies, "get_proxy_mode", None)
    return proxy_mode is not None and proxy_mode() is not None
