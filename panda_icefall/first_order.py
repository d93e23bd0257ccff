"""Backwards of operations that are differentiable once, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from panda_icefall.dynamo import opaque


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to be recorded for a second derivative, which would silently be zero.

    Autograd calls a backward where it is asked for gradients, in a compiled training step too.

    Args:
      backward: of a ``torch.autograd.Function``; its tensors are made outside autograd's sight.

    Raises:
      RuntimeError: from the backward, where ``create_graph=True`` was asked for.
    """

    @opaque
    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph: got True, expected False: PANDA's losses are differentiable once; "
                "compute this loss without PANDA"
            )
        return backward(ctx, *grads)

    return checked
