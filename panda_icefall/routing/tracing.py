"""Whether torch writes down what runs now, as a graph that is to run elsewhere."""

from __future__ import annotations

import sys

import torch


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
