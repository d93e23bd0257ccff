"""A recorded joiner as a whole: its nodes in order, its tensor, and the program of its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from panda_icefall.normalizer import RowProgram, Slot, Step
from panda_icefall.routing.joint_sites import JointSites
from panda_icefall.routing.nodes import (
    NODES,
    LateInputs,
    Linear,
    Node,
    Operand,
    Operation,
    Table,
    linear,
)


def in_order(node: Node, *, is_read: bool = True) -> list[Node]:
    """The nodes that ``node`` depends on, itself last, each once, inputs before users.

    Args:
      is_read: whether their values will be; they are checked then.

    Raises:
      PandaError: a tensor was changed in place since it was recorded, or its memory is gone.
    """
    order: list[Node] = []
    seen: set[int] = set()
    # Explicit stack, no nested function: a closure that calls itself would be a reference cycle
    # that keeps whole autograd graphs alive until the garbage collector runs.
    stack: list[tuple[Node, bool]] = [(node, False)]
    while stack:
        item, is_ready = stack.pop()
        if is_ready:
            if is_read and isinstance(item, LateInputs):
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


def reading_others(node: Node, replaced: Mapping[int, Tensor]) -> Node:
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


def materialise(node: Node, sites: JointSites) -> Tensor:
    """The ordinary ``[*sites.shape, width]`` tensor of a node, by running what was recorded.

    The caller sets the grad mode; autocast must be off (its effect is in the recorded nodes).

    Raises:
      PandaError: a tensor was changed in place since it was recorded.
      IndexError: ranges leave ``lm``.
    """
    values: dict[int, Tensor] = {}
    for item in in_order(node):
        if isinstance(item, Table):
            result = sites.at_sites(item.values, item.by_symbol)
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


def row_program(node: Node, sites: JointSites, position: Tensor | None = None) -> RowProgram:
    """The program that gives the rows ``[N, width]`` of a node.

    Args:
      position: int64 ``[N]``, the sites to give rows for; None: all of them, in their order.
    """
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
            slots[id(n)] = parameter(n.vector)
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
    program = RowProgram(rows, parameters, steps)
    return program if position is None else program.at(position)
