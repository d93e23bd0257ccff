"""``SiteTensor``: stands for a tensor that has one row for each site."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from panda_icefall.routing.graph import in_order, materialise, reading_others
from panda_icefall.routing.joint_sites import JointSites
from panda_icefall.routing.nodes import Node, Operand, Operation, version_of
from panda_icefall.routing.stand_in import Report, StandIn


class SiteTensor(StandIn):
    """Stands for a tensor of one row per site, ``[B, T, s_range, X]`` or a view of such a one.

    Tensors that share memory are told apart from copies: while nothing but this object knows its
    values, an operation in place gives it another node. Once its tensor was handed out, or while
    there are views of it, such an operation is done on the tensor.

    Args:
      node, sites: what it stands for.
      report: called with the name of the operation that materialises it.
      lead: sizes of the dimensions of the sites, in (b, t, s) order; None: ``sites.shape``.
      channel: the dimension of X; None: the last one.
    """

    family = "joint"

    def __init__(
        self,
        node: Node,
        sites: JointSites,
        report: Report,
        lead: tuple[int, ...] | None = None,
        channel: int | None = None,
    ) -> None:
        super().__init__(report)
        self.sites = sites
        self.lead = sites.shape if lead is None else lead
        self.channel = len(self.lead) if channel is None else channel
        self._node = node
        self._version_read: int | None = None
        self._base: tuple[SiteTensor, Callable[[Tensor], Tensor]] | None = None
        self._views: list[weakref.ref[SiteTensor]] = []

    @property
    def node(self) -> Node:
        """What it stands for; where its tensor exists, that."""
        if self._tensor is not None and self._version_read != version_of(self._tensor):
            operand = self.operand(self._tensor)
            assert operand is not None
            self._node, self._version_read = operand, version_of(self._tensor)
        return self._node

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.lead[: self.channel], self.width, *self.lead[self.channel :]))

    @property
    def width(self) -> int:
        """X."""
        return self._node.width

    @property
    def dtype(self) -> torch.dtype:
        return self._node.dtype

    @property
    def device(self) -> torch.device:
        return self.sites.device

    @property
    def requires_grad(self) -> bool:
        return self.grad_enabled and any(tensor.requires_grad for tensor in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        order = in_order(self.node, is_read=False)
        nodes = [n for n in order if not isinstance(n, Operation)]
        return tuple({id(t): t for n in nodes for t in n.tensors()}.values())

    def reading(self, tensors: Sequence[Tensor]) -> SiteTensor:
        replaced = {id(old): new for old, new in zip(self.tensors(), tensors)}
        return self.derive(reading_others(self.node, replaced))

    @property
    def axes(self) -> tuple[tuple[int, ...], int]:
        """``lead`` and ``channel``."""
        return self.lead, self.channel

    @property
    def is_plain(self) -> bool:
        """Whether its shape is the sites' own and X, ``[B, T, s_range, X]``."""
        return self.axes == (self.sites.shape, len(self.sites.shape))

    @property
    def is_alone(self) -> bool:
        """Whether no other tensor can share its memory."""
        has_views = any(view() is not None for view in self._views)
        return not self.is_materialised and self._base is None and not has_views

    def operand(self, values: Tensor) -> Operand | None:
        """A tensor that broadcasts to this one's shape, as node; None: it does not.

        X itself is not checked.
        """
        rank = len(self.lead) + 1
        if values.dim() == 0 or (self.is_plain and values.dim() <= rank):
            leading = values.shape[:-1][::-1]
            fits = all(size in (1, n) for size, n in zip(leading, self.lead[::-1]))
            return Operand(values) if fits else None
        if values.dim() > rank:
            return None
        given = values
        # Not cut off from its history: the node may be read where gradients are on again.
        with torch.inference_mode(False), torch.enable_grad():
            values = values[(None,) * (rank - values.dim())].movedim(self.channel, -1)
            lead = values.shape[:-1]
            if all(size == 1 for size in lead):
                # Itself where it can be: packed joints are joined where they read one tensor.
                return Operand(given if given.dim() == 1 else values.reshape(-1))
            if any(size not in (1, n) for size, n in zip(lead, self.lead)):
                return None
            values = values.expand(*self.lead, values.shape[-1])
            return Operand(values.reshape(*self.sites.shape, values.shape[-1]))

    def compute(self) -> Tensor:
        tensor = materialise(self.node, self.sites)
        if self.is_plain:
            return tensor
        return tensor.reshape(*self.lead, self.width).movedim(-1, self.channel)

    def materialise(self, operation: str) -> Tensor:
        if self._tensor is None and self._base is not None:
            self._base[0].materialise(operation)
        elif self._tensor is None:
            if isinstance(self._node, Operand):
                self._tensor = self._node.values
            else:
                super().materialise(operation)
            self._materialise_views()
        assert self._tensor is not None
        return self._tensor

    def _materialise_views(self) -> None:
        for reference in self._views:
            view = reference()
            if view is not None and view._tensor is None:
                assert view._base is not None
                assert self._tensor is not None
                with torch.inference_mode(False), torch.set_grad_enabled(view.grad_enabled):
                    view._tensor = view._base[1](self._tensor)
                view._materialise_views()

    def keep(self, result: Any, arguments: list[Any]) -> Any:
        """The result of an operation that was not recorded, recordable again where it can be.

        Args:
          result: what it gave.
          arguments: the ordinary tensors and the rest that it was given.
        """
        is_site_wide = (
            type(result) is Tensor
            and result.dim() == len(self.lead) + 1
            and (*result.shape[: self.channel], *result.shape[self.channel + 1 :]) == self.lead
            and result.is_floating_point()
            and result.device == self.device
            and result.layout == torch.strided
        )
        if result is self._tensor:
            return self
        node = self.operand(result) if is_site_wide else None
        if node is None:
            return result
        kept = self.derive(node)
        if _share_memory(result, self._tensor):
            kept._base = self, lambda _: result
            self._views.append(weakref.ref(kept))
        elif result._is_view() or any(_share_memory(result, a) for a in arguments):
            return result
        if kept._base is not None or not self.is_plain:
            kept._tensor = result
        return kept

    def derive(self, node: Node) -> SiteTensor:
        """Another one on the same sites."""
        return type(self)(node, self.sites, self._report, *self.axes)

    def shared(
        self, node: Node, function: Callable[[Tensor], Tensor], lead: tuple[int, ...], channel: int
    ) -> SiteTensor:
        """One that shares memory with this one, whose tensor ``function`` makes of this one's."""
        view = type(self)(node, self.sites, self._report, lead, channel)
        view._base = self, function
        self._views.append(weakref.ref(view))
        if self.is_materialised:
            self._materialise_views()
        return view

    def become(self, node: Node) -> SiteTensor:
        """What an in-place operation leaves in this object, which must be alone."""
        self._node = node
        return self

    def before_change(self) -> None:
        """Its tensor is about to be changed: what was recorded with it goes on with a copy."""
        root = self
        while root._base is not None:
            root = root._base[0]
        root._copy_what_was_read(set())

    def _copy_what_was_read(self, done: set[int]) -> None:
        node = self._node
        if isinstance(node, Operand):
            self.materialise("")  # takes the tensor there is
            self._version_read = None
            if id(node) not in done:
                done.add(id(node))
                with torch.enable_grad():
                    node.replace(node.values.clone())
        for reference in self._views:
            view = reference()
            if view is not None:
                view._copy_what_was_read(done)


def _share_memory(result: Tensor, other: Any) -> bool:
    """Whether another value is a tensor of the memory of this one."""
    if not isinstance(other, Tensor) or other.layout != torch.strided:
        return False
    # torch 1.13 has no untyped_storage.
    first, second = (getattr(t, "untyped_storage", t.storage)() for t in (result, other))
    return bool(first.data_ptr() == second.data_ptr())
