"""A recorded joiner as a whole: the tensor it stands for, and the program of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from panda_icefall.normalizer import RowProgram, Slot, Step
from panda_icefall.routing.nodes import (
    NODES,
    Linear,
    Node,
    Operand,
    Operation,
    Sites,
    Table,
    in_order,
    linear,
)
from panda_icefall.routing.stand_in import Report, StandIn


class SiteTensor(StandIn):
    """Stands for a ``[B, T, s_range, X]`` tensor: a node and the sites it is taken at.

    Attributes:
      node, sites: what it stands for.
    """

    def __init__(self, node: Node, sites: Sites, report: Report) -> None:
        super().__init__(report)
        self.node = node
        self.sites = sites

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
    def requires_grad(self) -> bool:
        return self.grad_enabled and any(tensor.requires_grad for tensor in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        nodes = [n for n in in_order(self.node) if not isinstance(n, Operation)]
        return tuple({id(t): t for n in nodes for t in n.tensors()}.values())

    def reading(self, tensors: Sequence[Tensor]) -> SiteTensor:
        replaced = {id(old): new for old, new in zip(self.tensors(), tensors)}
        return self.derive(_reading(self.node, replaced))

    def compute(self) -> Tensor:
        return materialise(self.node, self.sites)

    def derive(self, node: Node) -> SiteTensor:
        """Another one on the same sites."""
        return type(self)(node, self.sites, self._report)

    def become(self, node: Node) -> SiteTensor:
        """What an in-place operation leaves in this object."""
        self.node = node
        return self


def _reading(node: Node, replaced: Mapping[int, Tensor]) -> Node:
    """The same on other tensors, given by the ids of those in their place now."""
    done: dict[int, Any] = {}

    def on_others(value: Any) -> Any:
        if isinstance(value, NODES):
            return done[id(value)]
        if isinstance(value, Tensor):
            return replaced.get(id(value), value)
        if isinstance(value, dict):
            return {key: on_others(item) for key, item in value.items()}
        return tuple(map(on_others, value)) if isinstance(value, tuple) else value

    for item in in_order(node):
        fields = {f.name: on_others(getattr(item, f.name)) for f in dataclasses.fields(item)}
        done[id(item)] = type(item)(**fields)
    return done[id(node)]


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
            args = [values[id(a)] if isinstance(a, NODES) else a for a in item.args]
            kwargs = {
                k: values[id(a)] if isinstance(a, NODES) else a for k, a in item.kwargs.items()
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
            args = tuple(slots[id(a)] if isinstance(a, NODES) else a for a in n.args)
            kwargs = {k: slots[id(a)] if isinstance(a, NODES) else a for k, a in n.kwargs.items()}
            steps.append(Step(n.function, args, kwargs, n.width, n.dtype))
    rows = [n.as_rows(sites) for n in tables if isinstance(n, (Table, Operand))]
    return RowProgram(rows, parameters, steps)
