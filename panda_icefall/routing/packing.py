"""The joint that a packed joiner makes by ``torch.cat`` of its utterances' joints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from panda_icefall.routing.joint_sites import GridSites, PackedSites
from panda_icefall.routing.nodes import NODES, Linear, Node, NotRecordableError, Operation, Table
from panda_icefall.routing.site_tensor import SiteTensor


def packed_joint(tensors: Any = (), dim: Any = 0, **others: Any) -> SiteTensor | None:
    """What ``torch.cat(tensors, dim)`` gives for joints ``[T_b * (S_b + 1), X]`` of utterances.

    Returns:
      The joint ``[sum of them, X]`` in the utterances' order; None: the tensors are no such joints.

    Raises:
      NotRecordableError: they are, but of utterances that were treated differently.
    """
    joints = [t for t in tensors if isinstance(t, SiteTensor)]
    lattices = [joint.sites for joint in joints if isinstance(joint.sites, GridSites)]
    is_of_one = all(sites.B is None for sites in lattices) and len(lattices) == len(joints)
    is_flat = all(len(joint.lead) == joint.channel == 1 for joint in joints)
    if not joints or len(joints) != len(tensors) or others or dim != 0:
        return None
    if not (is_of_one and is_flat):
        return None
    if any(joint.grad_enabled != joints[0].grad_enabled for joint in joints):
        raise NotRecordableError
    sites = PackedSites(
        [lattice.T for lattice in lattices],
        [lattice.states for lattice in lattices],
        joints[0].device,
    )
    node = _joined([joint.node for joint in joints], {})
    return type(joints[0])(node, sites, joints[0]._report)


def _joined(nodes: Sequence[Any], done: dict[tuple[int, ...], Node]) -> Any:
    """One node for all utterances of what was recorded for each; a constant as it is."""
    first = nodes[0]
    if not isinstance(first, NODES):
        if isinstance(first, Tensor):
            is_same = all(node is first for node in nodes)
        else:
            is_same = all(type(node) is type(first) and node == first for node in nodes)
        if not is_same:
            raise NotRecordableError
        return first
    key = tuple(map(id, nodes))
    if key not in done:
        done[key] = _joined_node(nodes, done)
    return done[key]


def _joined_node(nodes: Sequence[Any], done: dict[tuple[int, ...], Node]) -> Node:
    first = nodes[0]
    if any(type(node) is not type(first) for node in nodes):
        raise NotRecordableError
    if isinstance(first, Table):
        if any(node.by_symbol != first.by_symbol for node in nodes):
            raise NotRecordableError
        return Table(torch.cat([node.values for node in nodes]), first.by_symbol)
    if isinstance(first, Linear):
        fixed = [(node.weight, node.bias, node.cast, node.dtype) for node in nodes]
        if any(a is not b for given in fixed for a, b in zip(given, fixed[0])):
            raise NotRecordableError
        return Linear(_joined([node.input for node in nodes], done), *fixed[0])
    if not isinstance(first, Operation):
        return _joined_operand(nodes)
    kinds = {(node.function, len(node.args), tuple(node.kwargs), node.width) for node in nodes}
    if len(kinds) != 1:
        raise NotRecordableError
    args = tuple(_joined(values, done) for values in zip(*(node.args for node in nodes)))
    kwargs = {k: _joined([node.kwargs[k] for node in nodes], done) for k in first.kwargs}
    return Operation(first.function, args, kwargs, first.width, first.dtype)


def _joined_operand(nodes: Sequence[Any]) -> Node:
    """An ordinary tensor that all sites share."""
    first = nodes[0]
    if not first.is_shared or any(node.values is not first.values for node in nodes):
        raise NotRecordableError
    return first
