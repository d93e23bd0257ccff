"""Recording of functions that treat every site by itself, along the dimension of X."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.normalizer.autocast import autocast_dtype, no_autocast
from panda_icefall.routing.nodes import (
    NODES,
    Linear,
    NotRecordableError,
    Operand,
    Operation,
    Table,
    cast,
    concatenated,
)
from panda_icefall.routing.site_tensor import SiteTensor

Function = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


def rows(
    function: Function,
    args: Arguments,
    kwargs: Keywords,
    joint: SiteTensor,
    *,
    run: Function | None = None,
) -> SiteTensor:
    """Record ``function(*args, **kwargs)``.

    Args:
      function: works on rows ``[n, X]``, for any n.
      args, kwargs: its arguments: site tensors, tensors that broadcast to them, nodes, constants.
      joint: one of them.
      run: the same function for any number of dimensions, X last; None: ``function`` is.

    Raises:
      NotRecordableError: a tensor does not broadcast, or the result is not one row for each site.
    """
    if kwargs.get("out") is not None:
        raise NotRecordableError
    run = function if run is None else run
    kwargs = {key: value for key, value in kwargs.items() if key != "out"}
    positional = [_node(value, joint) for value in args]
    keywords = {key: _node(value, joint) for key, value in kwargs.items()}
    given = [*positional, *keywords.values()]
    tables = {id(n): n for n in given if isinstance(n, Table)}
    others = [n for n in given if isinstance(n, (Operation, Linear))]
    operands = [n for n in given if isinstance(n, Operand)]
    is_plain = run is function or autocast_dtype(joint.device) is None
    if len(tables) == 1 and not others and is_plain and all(n.is_shared for n in operands):
        # One value per table row, however many sites read it: compute it there, now.
        (table,) = tables.values()
        result = run(*map(_values, positional), **{k: _values(v) for k, v in keywords.items()})
        return joint.derive(Table(result, table.by_symbol))
    device = joint.device
    sample = _sample(function, positional, keywords, device)
    if autocast_dtype(device) is not None:
        with no_autocast(device):
            plain = _sample(function, positional, keywords, device)
            if plain.dtype != sample.dtype:
                # What autocast does, written out: the replay runs without it.
                positional = [_in_dtype(n, sample.dtype) for n in positional]
                keywords = {k: _in_dtype(n, sample.dtype) for k, n in keywords.items()}
                plain = _sample(function, positional, keywords, device)
        if plain.dtype != sample.dtype:
            raise NotRecordableError
    if sample.dim() != 2 or sample.shape[0] != 0:
        raise NotRecordableError
    node = Operation(run, tuple(positional), keywords, sample.shape[1], sample.dtype)
    return joint.derive(node)


def _node(value: Any, joint: SiteTensor) -> Any:
    if isinstance(value, SiteTensor):
        return value.node
    if not isinstance(value, Tensor):
        return value
    operand = joint.operand(value)
    if operand is None or (value.device != joint.device and value.dim() > 0):
        raise NotRecordableError
    return operand


def _values(value: Any) -> Any:
    if isinstance(value, Table):
        return value.values
    return value.vector if isinstance(value, Operand) else value


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    is_floating = isinstance(value, NODES) and value.dtype.is_floating_point
    return cast(value, dtype) if is_floating else value


def _sample(function: Function, args: list[Any], kwargs: Keywords, device: torch.device) -> Tensor:
    """The function on rows of zero sites: gives width, dtype, and torch's own errors, for free."""

    def empty(value: Any) -> Any:
        if isinstance(value, Operand):
            return value.vector if value.is_shared else value.values.new_empty((0, value.width))
        if isinstance(value, (Table, Operation, Linear)):
            return torch.empty((0, value.width), dtype=value.dtype, device=device)
        return value

    with torch.no_grad():
        return function(*map(empty, args), **{k: empty(v) for k, v in kwargs.items()})


def along_channel(position: int, default: int | None) -> Function:
    """A rule for functions of rows whose argument ``dim`` says along which dimension.

    Args:
      position: of ``dim`` among the positional arguments.
      default: of ``dim``; None: it must be given.
    """

    def rule(
        function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor
    ) -> SiteTensor:
        given = args[position] if len(args) > position else kwargs.get("dim", default)
        if not isinstance(given, int) or given % joint.ndim != joint.channel:
            raise NotRecordableError
        if len(args) > position:
            args = (*args[:position], -1, *args[position + 1 :])
        else:
            kwargs = {**kwargs, "dim": -1}
        return rows(function, args, kwargs, joint)

    return rule


def norm(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    """``layer_norm`` and ``rms_norm`` over X."""
    over = kwargs.get("normalized_shape", args[1] if len(args) > 1 else None)
    if not isinstance(over, (tuple, list, torch.Size)) or tuple(over) != (joint.width,):
        raise NotRecordableError
    if joint.channel != joint.ndim - 1:
        raise NotRecordableError
    return rows(function, args, kwargs, joint)


def prelu(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    """With one slope, or one for each x where X is the second dimension, as torch has it."""
    if kwargs or len(args) != 2 or not isinstance(args[1], Tensor) or args[0] is not joint:
        raise NotRecordableError
    if args[1].numel() != 1 and joint.channel != 1:
        raise NotRecordableError
    return rows(function, (joint, Operand(args[1])), {}, joint, run=_leaky)


def _leaky(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def cat(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    """``torch.cat`` along X."""
    tensors: Any = kwargs.get("tensors", args[0] if args else None)
    dim: Any = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if not isinstance(tensors, (list, tuple)) or not isinstance(dim, int):
        raise NotRecordableError
    if kwargs.get("out") is not None or dim % joint.ndim != joint.channel:
        raise NotRecordableError
    return side_by_side(tuple(tensors), joint)


def hstack(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    """``torch.hstack`` of two-dimensional tensors."""
    if kwargs or len(args) != 1 or joint.axes != (joint.lead, 1):
        raise NotRecordableError
    return side_by_side(tuple(args[0]), joint)


def side_by_side(tensors: Arguments, joint: SiteTensor) -> SiteTensor:
    """Rows of all the tensors one after the other, which must have one for each site."""
    for tensor in tensors:
        if isinstance(tensor, Tensor) and (
            tensor.dim() != joint.ndim
            or tensor.movedim(joint.channel, -1).shape[:-1] != torch.Size(joint.lead)
        ):
            raise NotRecordableError
    return rows(concatenated, tensors, {}, joint)


def dropout(function: Function, args: Arguments, kwargs: Keywords, joint: SiteTensor) -> SiteTensor:
    """Dropout, with the numbers drawn now that the dense run would draw now."""
    p, is_training = _dropout_arguments(*args[1:], **kwargs)
    if args[0] is not joint or joint.channel != joint.ndim - 1:
        raise NotRecordableError
    if not is_training or p == 0:
        return joint
    if not 0 < p < 1:
        raise NotRecordableError
    with torch.no_grad():
        ones = torch.ones(joint.shape, dtype=joint.dtype, device=joint.device)
        kept = F.dropout(ones, p, training=True) != 0
    return rows(_dropped, (joint, kept, p), {}, joint)


def _dropout_arguments(
    p: float = 0.5, training: bool | None = None, *, train: bool | None = None
) -> tuple[float, bool]:
    if training is None:
        training = True if train is None else train
    return p, training


def _dropped(x: Tensor, kept: Tensor, p: float) -> Tensor:
    return x * kept / (1 - p)
