"""The recorded joiner: a graph of per-site operations, turned into a row program or a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.normalizer import RowProgram, RowTable, Slot, Step
from panda_icefall.routing.errors import PandaError


@dataclass(frozen=True, eq=False)
class Sites:
    """The retained sites of one ``do_rnnt_pruning`` call: ``ranges`` ``[B, T, s_range]`` int64."""

    ranges: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        B, T, s_range = self.ranges.shape
        return B, T, s_range


class _Inputs:
    """Mixin of nodes that hold tensors, whose values are read only when the loss is computed."""

    def tensors(self) -> tuple[Tensor, ...]:
        raise TypeError("a node says which tensors it holds")

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", [_version(t) for t in self.tensors()])

    def check_unchanged(self) -> None:
        """Refuse to go on with values that the joiner never saw.

        Raises:
          PandaError: a tensor was changed in place since it was recorded.
        """
        for tensor, version in zip(self.tensors(), self._versions):  # type: ignore[attr-defined]
            if _version(tensor) != version:
                raise PandaError(
                    f"a tensor of shape {tuple(tensor.shape)} that the joiner read was changed in "
                    f"place before the loss: got version {_version(tensor)}, expected {version}; "
                    f"PANDA computes the joiner with the loss, so give it a copy (clone())"
                )


def _version(tensor: Tensor) -> int:
    # Inference tensors count no versions.
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True, eq=False)
class Table(_Inputs):
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
class Operand(_Inputs):
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

    @property
    def is_shared(self) -> bool:
        """Whether every site reads the same values."""
        return all(size == 1 for size in self.values.shape[:-1])

    def as_rows(self, sites: Sites) -> RowTable:
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
    """A function applied to every site by itself; arguments may be nodes."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    width: int
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Linear(_Inputs):
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
_NODES = (Table, Operand, Operation, Linear)


class SiteTensor:
    """A recorded ``[B, T, s_range, X]`` tensor: a node and the sites it is taken at.

    Attributes:
      node, sites: what it stands for.
      grad_enabled: grad mode it was made in; recording in another one would change gradients.
    """

    def __init__(self, node: Node, sites: Sites) -> None:
        self.node = node
        self.sites = sites
        self.grad_enabled = torch.is_grad_enabled()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.sites.shape, self.node.width))

    @property
    def dtype(self) -> torch.dtype:
        return self.node.dtype

    @property
    def device(self) -> torch.device:
        return self.sites.ranges.device

    @property
    def is_materialised(self) -> bool:
        """Whether its ordinary tensor exists; nothing more is recorded on it then."""
        return False

    def derive(self, node: Node) -> SiteTensor:
        """Another one on the same sites."""
        return SiteTensor(node, self.sites)

    def become(self, node: Node) -> SiteTensor:
        """What an in-place operation leaves in this object."""
        self.node = node
        return self


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, cast: torch.dtype | None) -> Tensor:
    """``F.linear`` with autocast's rounding made explicit, so that it replays anywhere."""
    if cast is not None:
        x, weight = x.to(cast), weight.to(cast)
        bias = None if bias is None else bias.to(cast)
    return F.linear(x, weight, bias)


def materialise(node: Node, sites: Sites) -> Tensor:
    """The ordinary ``[B, T, s_range, width]`` tensor of a node, by running what was recorded.

    The caller sets the grad mode; autocast must be off (its effect is in the recorded nodes).

    Raises:
      PandaError: a tensor was changed in place since it was recorded.
      IndexError: ranges leave ``lm``.
    """
    values: dict[int, Tensor] = {}
    for item in in_order(node):
        if isinstance(item, Table):
            result = item.at_sites(sites)
        elif isinstance(item, Operand):
            result = item.values
        elif isinstance(item, Linear):
            result = linear(values[id(item.input)], item.weight, item.bias, item.cast)
        else:
            args = [values[id(a)] if isinstance(a, _NODES) else a for a in item.args]
            kwargs = {
                k: values[id(a)] if isinstance(a, _NODES) else a for k, a in item.kwargs.items()
            }
            result = item.function(*args, **kwargs)
        values[id(item)] = result
    return values[id(node)]


def row_program(node: Node, sites: Sites) -> RowProgram:
    """The program that gives the rows ``[B * T * s_range, width]`` of a node."""
    order = in_order(node)
    tables: list[Node] = [n for n in order if isinstance(n, Table)]
    tables += [n for n in order if isinstance(n, Operand) and not n.is_shared]
    parameters: list[Tensor] = []
    slots: dict[int, Slot] = {id(n): Slot(i) for i, n in enumerate(tables)}

    def parameter(tensor: Tensor) -> Slot:
        parameters.append(tensor)
        return Slot(len(tables) + len(parameters) - 1)

    for n in order:
        if isinstance(n, Operand) and n.is_shared:
            vector = n.values if n.values.dim() == 0 else n.values.reshape(-1)
            slots[id(n)] = parameter(vector)
    operations = [n for n in order if isinstance(n, (Operation, Linear))]
    weights = {
        id(n): (parameter(n.weight), None if n.bias is None else parameter(n.bias))
        for n in operations
        if isinstance(n, Linear)
    }
    steps: list[Step] = []
    for n in operations:
        slots[id(n)] = Slot(len(tables) + len(parameters) + len(steps))
        if isinstance(n, Linear):
            args: tuple[Any, ...] = (slots[id(n.input)], *weights[id(n)], n.cast)
            steps.append(Step(linear, args, {}, n.width, n.dtype))
        else:
            args = tuple(slots[id(a)] if isinstance(a, _NODES) else a for a in n.args)
            kwargs = {k: slots[id(a)] if isinstance(a, _NODES) else a for k, a in n.kwargs.items()}
            steps.append(Step(n.function, args, kwargs, n.width, n.dtype))
    rows = [n.as_rows(sites) for n in tables if isinstance(n, (Table, Operand))]
    return RowProgram(rows, parameters, steps)


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
            if isinstance(item, _Inputs):
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
        return [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, _NODES)]
    return []
