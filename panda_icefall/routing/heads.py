"""The head of recorded logits: what follows the last linear layers, folded into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dtypes import HALVES
from panda_icefall.routing.nodes import (
    NODES,
    Linear,
    Node,
    Operand,
    Operation,
    cast,
    concatenated,
)
from panda_icefall.routing.torch_functions import (
    LOG_SOFTMAX,
    MASKED_FILL,
    NEGATE,
    SIGN_OF,
    SUBTRACT_FROM,
)


@dataclass(frozen=True)
class Head:
    """A linear layer on the rows of a node.

    Attributes:
      input: whose rows it is applied to.
      weight: ``[C, H]``.
      bias: ``[C]`` or None.
      cast: the dtype that rows and weight are rounded to first, or None.
    """

    input: Node
    weight: Tensor
    bias: Tensor | None
    cast: torch.dtype | None = None

    @property
    def classes(self) -> int:
        """C."""
        return self.weight.shape[0]


def linear_head(logits: Node, *, is_shift_free: bool) -> Head | None:
    """The linear layer that recorded logits come from; None: another operation makes them.

    Args:
      logits: the node of ``[B, T, s_range, C]``.
      is_shift_free: whether the loss stays the same when all logits of a site are shifted.
    """
    node = logits
    while isinstance(node, Operation) and not _is_widened_to_double(node):
        is_log_softmax = is_shift_free and node.function in LOG_SOFTMAX
        # A cast is icefall's logits.float().
        if not (node.function is Tensor.to or is_log_softmax):
            break
        node = node.args[0]
    return _folded(node)


def is_log_softmax(node: Node) -> bool:
    """Whether recorded logits end in a ``log_softmax``, casts apart."""
    while isinstance(node, Operation) and node.function is Tensor.to:
        node = node.args[0]
    return isinstance(node, Operation) and node.function in LOG_SOFTMAX


def _is_widened_to_double(node: Operation) -> bool:
    given = node.args[0]
    return node.dtype == torch.float64 and isinstance(given, NODES) and given.dtype != node.dtype


def _folded(node: Node) -> Head | None:
    """What linear layers, and what follows them, come to as one layer; None: they do not."""
    if isinstance(node, Linear):
        return Head(node.input, node.weight, node.bias, node.cast)
    if not isinstance(node, Operation) or node.kwargs or _is_widened_to_double(node):
        return None
    if node.function is concatenated:
        heads = [_folded(n) for n in node.args]
        return None if None in heads else _side_by_side([h for h in heads if h is not None])
    first, *rest = node.args
    if node.function is Tensor.to:
        return _folded(first)
    if node.function is Tensor.__getitem__:
        head = _folded(first)
        return None if head is None else _each(head, lambda t: t[rest[0][1]])
    if node.function in NEGATE:
        head = _folded(first)
        return None if head is None else _each(head, torch.neg)
    if node.function in MASKED_FILL:
        return _masked(_folded(first), node.width, *rest)
    if len(rest) == 1 and node.function in SUBTRACT_FROM:
        return _arithmetic("-", rest[0], first, node.width)
    if len(rest) == 1 and node.function in SIGN_OF:
        return _arithmetic(SIGN_OF[node.function], first, rest[0], node.width)
    return None


def _arithmetic(sign: str, a: Any, b: Any, classes: int) -> Head | None:
    """``a sign b``, where one of them is a head, or both are."""
    left, right = (_folded(x) if isinstance(x, NODES) else None for x in (a, b))
    if left is not None and right is not None:
        has_same_width = left.classes == right.classes == classes
        if sign not in "+-" or not has_same_width:
            return None
        return _sum(left, right if sign == "+" else _each(right, torch.neg))
    head, constant = (right, _constant(a)) if left is None else (left, _constant(b))
    if head is None or constant is None or head.classes != classes:
        return None
    if sign == "+":
        return replace(head, bias=_bias(head) + constant)
    if sign == "-":
        head = head if left is not None else _each(head, torch.neg)
        return replace(head, bias=_bias(head) + (constant if left is None else -constant))
    if sign == "/" and left is None:
        return None
    factor = constant if sign == "*" else 1 / constant
    # Rounded as the layer reads it and not again: half-precision values are widened first.
    return _each(_widened(head), lambda t: (t * _along_classes(factor, t)).to(t.dtype))


def _masked(head: Head | None, classes: int, mask: Any, value: Any) -> Head | None:
    """``masked_fill`` of whole classes."""
    where, number = _constant(mask), _constant(value)
    if head is None or head.classes != classes or number is None:
        return None
    if not isinstance(where, Tensor) or where.shape != (classes,):
        return None
    return replace(
        head,
        weight=head.weight.masked_fill(where[:, None], 0),
        bias=_bias(head).masked_fill(where, number),
    )


def _sum(a: Head, b: Head) -> Head | None:
    has_same_rows = a.input is b.input and a.cast == b.cast
    a, b = _widened(a), _widened(b)
    if a.weight.dtype != b.weight.dtype:
        return None
    bias = None if a.bias is None and b.bias is None else _bias(a) + _bias(b)
    if has_same_rows:
        return Head(a.input, a.weight + b.weight, bias)
    return Head(_beside([a, b]), torch.cat((a.weight, b.weight), dim=1), bias)


def _side_by_side(heads: list[Head]) -> Head | None:
    """Heads whose classes stand one after the other."""
    if any(h.input is not heads[0].input or h.cast != heads[0].cast for h in heads):
        heads = [_widened(h) for h in heads]
    if len({h.weight.dtype for h in heads}) > 1:
        return None
    bias = None
    if any(h.bias is not None for h in heads):
        bias = torch.cat([_bias(h) for h in heads])
    if all(h.input is heads[0].input for h in heads):
        return replace(heads[0], weight=torch.cat([h.weight for h in heads]), bias=bias)
    return Head(_beside(heads), torch.block_diag(*(h.weight for h in heads)), bias)


def _beside(heads: list[Head]) -> Node:
    """Rows that hold all heads' rows, one after the other."""
    inputs = tuple(h.input for h in heads)
    return Operation(concatenated, inputs, {}, sum(n.width for n in inputs), inputs[0].dtype)


def _widened(head: Head) -> Head:
    """The same head in float32, of values that were rounded to half precision."""
    rounded_to = head.weight.dtype if head.cast is None else head.cast
    if rounded_to not in HALVES:
        return head
    return Head(
        cast(cast(head.input, rounded_to), torch.float32),
        head.weight.to(rounded_to).float(),
        None if head.bias is None else _bias(head),
    )


def _each(head: Head, function: Callable[[Tensor], Tensor]) -> Head:
    """The head with a function applied to its weight and bias along the classes."""
    bias = None if head.bias is None else function(head.bias)
    return replace(head, weight=function(head.weight), bias=bias)


def _bias(head: Head) -> Tensor:
    bias = head.weight.new_zeros(head.classes) if head.bias is None else head.bias
    return bias if bias.dtype == torch.float64 else bias.float()


def _constant(value: Any) -> Tensor | float | None:
    """A number, or what all sites share: a tensor of 0 or 1 dimensions."""
    if isinstance(value, Operand):
        return value.vector if value.is_shared else None
    return value if isinstance(value, (int, float)) else None


def _along_classes(factor: Tensor | float, tensor: Tensor) -> Tensor | float:
    """A factor of each class as it multiplies a weight ``[C, H]`` or a bias ``[C]``."""
    if isinstance(factor, Tensor) and factor.dim() == 1 and tensor.dim() == 2:
        return factor[:, None]
    return factor
