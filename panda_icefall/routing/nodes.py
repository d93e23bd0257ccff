"""Nodes of a recorded joiner: compact inputs, further operands, per-site operations, linears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.normalizer import RowTable
from panda_icefall.routing.late_inputs import LateInputs


class NotRecordableError(Exception):
    """An operation has to be run on ordinary tensors."""


@dataclass(frozen=True, eq=False)
class Sites:
    """The retained sites of one ``do_rnnt_pruning`` call: ``ranges`` ``[B, T, s_range]`` int64."""

    ranges: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        B, T, s_range = self.ranges.shape
        return B, T, s_range


@dataclass(frozen=True, eq=False)
class Table(LateInputs):
    """A compact input: ``am`` ``[B, T, X]`` (read at t) or ``lm`` ``[B, S + 1, X]`` (read at s)."""

    values: Tensor
    by_symbol: bool

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    @property
    def width(self) -> int:
        return self.values.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def at_sites(self, sites: Sites) -> Tensor:
        """The ordinary ``[B, T, s_range, X]`` tensor."""
        B, T, s_range = sites.shape
        if not self.by_symbol:
            return self.values.unsqueeze(2).expand(B, T, s_range, self.width)
        return (
            self.as_rows(sites)
            .values.index_select(0, self._index(sites))
            .view(B, T, s_range, self.width)
        )

    def as_rows(self, sites: Sites) -> RowTable:
        flat = self.values.reshape(-1, self.width)
        return RowTable(flat, self._index(sites))

    def _index(self, sites: Sites) -> Tensor:
        B, T, s_range = sites.shape
        b = torch.arange(B, device=self.values.device)[:, None, None]
        if self.by_symbol:
            rows = self.values.shape[1]
            # Flat row numbers would reach into the next utterance: -1 is refused where it is read.
            inside = (sites.ranges >= 0) & (sites.ranges < rows)
            index = torch.where(inside, b * rows + sites.ranges, torch.full_like(sites.ranges, -1))
        else:
            t = torch.arange(T, device=self.values.device)[None, :, None]
            index = (b * T + t).expand(B, T, s_range)
        return index.reshape(-1)


@dataclass(frozen=True, eq=False)
class Operand(LateInputs):
    """An ordinary tensor that broadcasts to ``[B, T, s_range, X]``."""

    values: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    @property
    def width(self) -> int:
        return self.values.shape[-1] if self.values.dim() else 1

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def replace(self, values: Tensor) -> None:
        """Put an equal tensor in place of one that is about to be changed."""
        object.__setattr__(self, "values", values)
        self.__post_init__()

    @property
    def is_shared(self) -> bool:
        """Whether every site reads the same values."""
        return all(size == 1 for size in self.values.shape[:-1])

    @property
    def vector(self) -> Tensor:
        """The values that every site reads, ``[X]``, or the number."""
        return self.values.reshape(-1) if self.values.dim() > 1 else self.values

    def is_at_each(self, sites: Sites) -> bool:
        """Whether it has values of its own for each site."""
        return tuple(self.values.shape[:-1]) == sites.shape

    def as_rows(self, sites: Sites) -> RowTable:
        if self.is_at_each(sites):
            return RowTable(self.values.reshape(-1, self.width))
        values = self.values[(None,) * (4 - self.values.dim())]  # 4 dimensions
        index = torch.zeros((1, 1, 1), dtype=torch.int64, device=values.device)
        for axis, size in enumerate(values.shape[:3]):
            step = torch.arange(size, device=values.device)
            shape = [1, 1, 1]
            shape[axis] = size
            index = index * size + step.view(shape)
        index = index.expand(sites.shape).reshape(-1)
        return RowTable(values.reshape(-1, values.shape[-1]), index)


@dataclass(frozen=True, eq=False)
class Operation:
    """A function applied to every site by itself; arguments may be nodes.

    It works along the last dimension, whatever the number of dimensions before that.
    """

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    width: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Linear(LateInputs):
    """``F.linear`` on every site; ``cast`` is what autocast rounds its operands to, or None."""

    input: Node
    weight: Tensor
    bias: Tensor | None
    cast: torch.dtype | None
    dtype: torch.dtype

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def width(self) -> int:
        return self.weight.shape[0]


Node = Union[Table, Operand, Operation, Linear]
NODES = (Table, Operand, Operation, Linear)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, cast: torch.dtype | None) -> Tensor:
    """``F.linear`` with autocast's rounding made explicit, so that it replays anywhere."""
    if cast is not None:
        x, weight = x.to(cast), weight.to(cast)
        bias = None if bias is None else bias.to(cast)
    return F.linear(x, weight, bias)


def cast(node: Node, dtype: torch.dtype) -> Node:
    """The node whose values are those of ``node`` in another dtype."""
    if dtype == node.dtype:
        return node
    if isinstance(node, Table):
        return Table(node.values.to(dtype), node.by_symbol)
    if isinstance(node, Operand) and node.is_shared:
        return Operand(node.values.to(dtype))
    return Operation(Tensor.to, (node, dtype), {}, node.width, dtype)


def concatenated(*rows: Tensor) -> Tensor:
    """``torch.cat`` of rows along their last dimension."""
    return torch.cat(rows, dim=-1)


def in_order(node: Node) -> list[Node]:
    """The nodes that ``node`` depends on, itself last, each once, inputs before users.

    Raises:
      PandaError: a tensor was changed in place since it was recorded.
    """
    order: list[Node] = []
    seen: set[int] = set()
    # Explicit stack, no nested function: a closure that calls itself would be a reference cycle
    # that keeps whole autograd graphs alive until the garbage collector runs.
    stack: list[tuple[Node, bool]] = [(node, False)]
    while stack:
        item, is_ready = stack.pop()
        if is_ready:
            if isinstance(item, LateInputs):
                item.check_unchanged()
            order.append(item)
        elif id(item) not in seen:
            seen.add(id(item))
            stack.append((item, True))
            stack += [(n, False) for n in reversed(_inputs_of(item))]
    return order


def _inputs_of(node: Node) -> list[Node]:
    if isinstance(node, Linear):
        return [node.input]
    if isinstance(node, Operation):
        return [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, NODES)]
    return []
