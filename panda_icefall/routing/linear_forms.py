"""Recording of linear layers, in the forms that joiners write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.normalizer.autocast import autocast_dtype, no_autocast
from panda_icefall.routing.nodes import Linear, NotRecordableError, Table, linear
from panda_icefall.routing.row_operations import Arguments, Function, Keywords
from panda_icefall.routing.site_tensor import SiteTensor


def linear_layer(
    function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor
) -> SiteTensor:
    """``F.linear(input, weight, bias)``."""
    return _apply(joint, *_bound(("input", "weight", "bias"), args, kwargs))


def matrix_product(
    function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor
) -> SiteTensor:
    """``matmul(x, matrix)``, of which ``mm`` is a case."""
    if kwargs or len(args) != 2 or not _is_matrix(args[1]):
        raise NotRecordableError
    return _apply(joint, args[0], args[1].t())


def added_product(
    function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor
) -> SiteTensor:
    """``addmm(bias, x, matrix)``."""
    bias, x, matrix = _bound(("input", "mat1", "mat2"), args, kwargs)
    is_bias = isinstance(bias, Tensor) and bias.dim() in (1, 2) and _is_matrix(matrix)
    if not is_bias or bias.numel() != matrix.shape[1]:
        raise NotRecordableError
    return _apply(joint, x, matrix.t(), bias.reshape(-1))


def einsum(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    """``einsum("btsh,ch->btsc", x, weight)`` and its like."""
    if kwargs or len(args) != 3 or not isinstance(args[0], str):
        raise NotRecordableError
    equation, *given = args
    inputs, arrow, output = equation.replace(" ", "").replace("...", "@").partition("->")
    names = inputs.split(",")
    if given[1] is joint:
        given, names = given[::-1], names[::-1]
    if not arrow or len(names) != 2 or len(names[1]) != 2 or not _is_matrix(given[1]):
        raise NotRecordableError
    sites, h = names[0][:-1], names[0][-1:]
    c = names[1].replace(h, "", 1)
    is_linear = h in names[1] and c not in names[0] and h not in sites and output == sites + c
    if not is_linear or len(c) != 1 or "@" in h + c or len(set(sites)) != len(sites):
        raise NotRecordableError
    if "@" not in sites and len(sites) != joint.ndim - 1:
        raise NotRecordableError
    return _apply(joint, given[0], given[1] if names[1][1] == h else given[1].t())


def convolution(
    function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor
) -> SiteTensor:
    """A convolution with a kernel of size 1, whose channels are X."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, stride, padding, _, groups = _bound(names, args, kwargs)

    def all_are(value: Any, number: int) -> bool:
        return value is None or set(value if isinstance(value, tuple) else (value,)) == {number}

    is_pointwise = (
        isinstance(weight, Tensor)
        and weight.dim() == joint.ndim
        and weight.shape[2:].numel() == 1
        and all_are(stride, 1)
        and all_are(padding, 0)
        and all_are(groups, 1)
    )
    if not is_pointwise or joint.channel != 1:
        raise NotRecordableError
    return _apply(joint, x, weight.flatten(1), bias, channel=1)


def _bound(names: tuple[str, ...], args: Arguments, kwargs: Keywords) -> list[Any]:
    """The arguments by name, None where not given."""
    if len(args) > len(names) or set(kwargs) - set(names[len(args) :]):
        raise NotRecordableError
    return [*args, *(kwargs.get(name) for name in names[len(args) :])]


def _is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2


def _apply(
    joint: SiteTensor, x: Any, weight: Any, bias: Any = None, channel: int | None = None
) -> SiteTensor:
    channel = joint.ndim - 1 if channel is None else channel
    is_vector = bias is None or (isinstance(bias, Tensor) and bias.dim() == 1)
    if x is not joint or joint.channel != channel or not _is_matrix(weight) or not is_vector:
        raise NotRecordableError
    node = joint.node
    if isinstance(node, Table):
        return joint.derive(Table(F.linear(node.values, weight, bias), node.by_symbol))
    # float64 is left alone by autocast.
    cast = None if node.dtype == torch.float64 else autocast_dtype(joint.device)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise NotRecordableError
    with torch.no_grad(), no_autocast(joint.device):
        # torch says what it refuses, and the dtype; of no class, as a cast of all takes their size.
        sample = torch.empty((0, node.width), dtype=node.dtype, device=joint.device)
        of_none = None if bias is None else _held_here(bias)[:0]
        dtype = linear(sample, _held_here(weight)[:0], of_none, cast).dtype
    return joint.derive(Linear(node, weight, bias, cast, dtype))


def _held_here(tensor: Any) -> Any:
    """The part of a DTensor that this rank has; other tensors as they are."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
