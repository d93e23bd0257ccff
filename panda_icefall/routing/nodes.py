"""Nodes of a recorded joiner: what it reads late, and what it does with that at every site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.freed import REMEDY, is_freed
from panda_icefall.normalizer import RowTable
from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.joint_sites import JointSites
from panda_icefall.routing.sharded_modules import note_gathered


class NotRecordableError(Exception):
    """An operation has to be run on ordinary tensors."""


class LateInputs:
    """Mixin of what holds tensors whose values are read only when the loss is computed.

    Attributes:
      reader: what would have read them at once, for errors.
    """

    reader: ClassVar[str] = "the joiner"
    # Shape and version of each of its tensors as they were recorded.
    _read: list[tuple[torch.Size, int]]

    def tensors(self) -> tuple[Tensor, ...]:
        raise TypeError("late inputs say which tensors they hold")

    def __post_init__(self) -> None:
        read = self.tensors()
        object.__setattr__(self, "_read", [(t.shape, version_of(t)) for t in read])
        note_gathered(read)

    @property
    def is_freed(self) -> bool:
        """Whether the memory of one of them is gone, as between forwards of a sharded module."""
        return any(
            is_freed(tensor, shape) for tensor, (shape, _) in zip(self.tensors(), self._read)
        )

    def check_unchanged(self) -> None:
        """Refuse to go on with values that their reader never saw.

        Raises:
          PandaError: a tensor was changed in place since it was recorded, or its memory is gone.
        """
        for tensor, (shape, version) in zip(self.tensors(), self._read):
            if is_freed(tensor, shape):
                raise PandaError(
                    f"a tensor of shape {tuple(shape)} that {self.reader} read was freed before "
                    f"the loss: got no memory for it; {REMEDY}"
                )
            if version_of(tensor) != version:
                raise PandaError(
                    f"a tensor of shape {tuple(tensor.shape)} that {self.reader} read was changed "
                    f"in place before the loss: got version {version_of(tensor)}, expected "
                    f"{version}; PANDA computes {self.reader} with the loss, so give it a copy "
                    f"(clone())"
                )


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place."""
    # Inference tensors count no versions.
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True, eq=False)
class Table(LateInputs):
    """A compact input: ``am`` ``[B, T, X]`` (read at t) or ``lm`` ``[B, S + 1, X]`` (read at s).

    Of packed sites they have no dimension B.
    """

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

    def as_rows(self, sites: JointSites) -> RowTable:
        flat = self.values.reshape(-1, self.width)
        return RowTable(flat, sites.index(self.values, self.by_symbol))


@dataclass(frozen=True, eq=False)
class Operand(LateInputs):
    """An ordinary tensor that broadcasts to the sites' shape and X, ``[B, T, s_range, X]``."""

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
        """Read an equal tensor instead of one that is about to be changed."""
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

    def is_at_each(self, sites: JointSites) -> bool:
        """Whether it has values of its own for each site."""
        return tuple(self.values.shape[:-1]) == sites.shape

    def as_rows(self, sites: JointSites) -> RowTable:
        if self.is_at_each(sites):
            return RowTable(self.values.reshape(-1, self.width))
        rank = len(sites.shape)
        values = self.values[(None,) * (rank + 1 - self.values.dim())]
        index = torch.zeros([1] * rank, dtype=torch.int64, device=values.device)
        for axis, size in enumerate(values.shape[:rank]):
            step = torch.arange(size, device=values.device)
            shape = [1] * rank
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
        # Of the weight as it was recorded: ZeRO-3 leaves it without a shape.
        return self._read[0][0][0]


Node = Table | Operand | Operation | Linear
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
