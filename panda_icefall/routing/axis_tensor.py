"""``AxisTensor``: am or lm of a full lattice, before the two meet at its sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from panda_icefall.routing.deferred import DeferredJoint
from panda_icefall.routing.joint_sites import GridSites
from panda_icefall.routing.nodes import NotRecordableError, Table
from panda_icefall.routing.row_operations import Arguments, Function, Keywords
from panda_icefall.routing.stand_in import Report, StandIn, flat, with_items
from panda_icefall.routing.torch_functions import IN_PLACE, POINTWISE, functions_named

_POINTWISE = set(POINTWISE)
_ITEMS = set(functions_named("__getitem__"))
_REPEATS = set(functions_named("expand expand_as repeat tile broadcast_to"))


class AxisTensor(StandIn):
    """An ordinary tensor that has one row for each frame, or for each state, of full lattices.

    It is ``[B, T, X]`` or, ready to meet lm, ``[B, T, 1, X]``; of lm ``[B, S + 1, X]`` or
    ``[B, 1, S + 1, X]``; of one utterance, as a packed joiner takes them out, without ``B``.
    What is done to it alone is computed at once. Where am and lm meet, or where one is expanded to
    the lattice, a ``DeferredJoint`` takes over.

    Args:
      values: the tensor.
      by_symbol: whether it is lm.
      sites: of all utterances.
      utterance: which one it is of; None: of all.
      report: as of ``StandIn``.
      is_private: operations in place change a copy, and not ``values``.
    """

    family = "joint"
    records_first = True

    def __init__(
        self,
        values: Tensor,
        by_symbol: bool,
        sites: GridSites,
        report: Report,
        utterance: int | None = None,
        *,
        is_private: bool = False,
    ) -> None:
        super().__init__(report)
        self.is_private = is_private
        self.values = values
        self.by_symbol = by_symbol
        self.sites = sites
        self.utterance = utterance

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def requires_grad(self) -> bool:
        return self.values.requires_grad

    def compute(self) -> Tensor:
        return self.values

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def reading(self, tensors: Sequence[Tensor]) -> AxisTensor:
        (values,) = tensors
        return self._like(values)

    @property
    def _rank(self) -> int:
        """Dimensions before X where am and lm meet."""
        return 3 if self.utterance is None else 2

    @property
    def _is_placed(self) -> bool:
        """Whether it has the dimension of the other one, of size 1."""
        return self.values.dim() == self._rank + 1

    @property
    def _rows(self) -> int:
        """Frames, or states."""
        return self.values.shape[-2 if self.by_symbol or not self._is_placed else -3]

    def record(self, function: Function, args: Arguments, kwargs: Keywords) -> Any:
        given = [v for v in flat((*args, *kwargs.values())) if isinstance(v, StandIn)]
        try:
            if all(self._is_of_same_axis(value) for value in given):
                return self._alone(function, args, kwargs)
            sites = _common_sites(given)
        except NotRecordableError:
            return None
        return _recorded_at(sites, function, args, kwargs)

    def at(self, sites: GridSites) -> DeferredJoint:
        """The joint that has its row at each site.

        Raises:
          NotRecordableError: it has not got the other one's dimension.
        """
        if not self._is_placed:
            raise NotRecordableError
        values = self.values.squeeze(sites.other_axis(self.by_symbol))
        return DeferredJoint(Table(values, self.by_symbol), sites, self._report)

    def _is_of_same_axis(self, other: StandIn) -> bool:
        return (
            isinstance(other, AxisTensor)
            and other.by_symbol == self.by_symbol
            and other.utterance == self.utterance
            and other.values.dim() == self.values.dim()
        )

    def _alone(self, function: Function, args: Arguments, kwargs: Keywords) -> Any:
        """What a function of this tensor alone gives; any other tensor among it is an ordinary one.

        A result of one of the shapes above stands for one value per row, whatever made it: where it
        meets the other one, its shape decides.
        """
        called = IN_PLACE.get(function, function)
        if called in _POINTWISE and not self._takes((*args, *kwargs.values())):
            return _recorded_at(_common_sites([self]), function, args, kwargs)
        if called in _REPEATS and args[0] is self:
            shape = function(self._without_values(), *_shapes(args[1:]), **kwargs).shape
            sites = _common_sites([self])
            return self.at(sites) if shape[:-1] == sites.shape else None
        if args and args[0] is self and function is not called and self.is_private:
            self.values = self.values.clone()  # the caller's tensor stays as it is
        return self._kept(function(*_values(args), **_values(kwargs)), called, args)

    def _takes(self, arguments: Arguments) -> bool:
        """Whether a result has the shape that the tensor has, X apart."""
        for value in arguments:
            if not isinstance(value, Tensor):
                continue
            leading = value.shape[:-1]
            if torch.broadcast_shapes(leading, self.shape[:-1]) != self.shape[:-1]:
                return False
        return True

    def _kept(self, result: Any, function: Function, args: Arguments) -> Any:
        if isinstance(result, (tuple, list)):
            return with_items(result, [self._kept(item, function, args) for item in result])
        if result is self.values:
            return self
        if not isinstance(result, Tensor) or not result.is_floating_point() or result.dim() < 2:
            return result
        batch = tuple(self.shape[:1]) if self.utterance is None else ()
        rows, X = self._rows, result.shape[-1]
        placed = (*batch, 1, rows, X) if self.by_symbol else (*batch, rows, 1, X)
        if tuple(result.shape) in ((*batch, rows, X), placed):
            return self._like(result)
        return self._of_utterance(result, args) if function in _ITEMS else result

    def _of_utterance(self, result: Tensor, args: Arguments) -> Any:
        """Rows that a packed joiner takes out: of one utterance, or the first ones of those."""
        taken = args[1] if len(args) > 1 else None
        first, *others = taken if isinstance(taken, tuple) else (taken,)
        if self._is_placed or result.dim() != 2 or result.shape[1] != self.shape[-1]:
            return result
        if self.utterance is None and isinstance(first, int) and all(map(_is_head, others)):
            return self._like(result, first % self.shape[0])
        if self.utterance is not None and all(map(_is_head, (first, *others))):
            return self._like(result)
        return result

    def _like(self, values: Tensor, utterance: int | None = None) -> AxisTensor:
        utterance = self.utterance if utterance is None else utterance
        return AxisTensor(
            values, self.by_symbol, self.sites, self._report, utterance, is_private=self.is_private
        )

    def _without_values(self) -> Tensor:
        return torch.empty_strided(
            self.shape, self.values.stride(), dtype=self.dtype, device="meta"
        )


def _is_head(index: Any) -> bool:
    """Whether it takes the first rows, or all of them."""
    return isinstance(index, slice) and index.start in (None, 0) and index.step in (None, 1)


def _common_sites(given: Sequence[StandIn]) -> GridSites:
    """The sites at which these meet.

    Raises:
      NotRecordableError: they are of several lattices.
    """
    joints = [value for value in given if isinstance(value, DeferredJoint)]
    axes = [value for value in given if isinstance(value, AxisTensor)]
    utterances = {value.utterance for value in axes}
    if len(utterances) != 1:
        raise NotRecordableError
    (utterance,) = utterances
    if joints:
        sites = joints[0].sites
        assert isinstance(sites, GridSites)
        return sites
    if utterance is None:
        return axes[0].sites
    counts = {value.by_symbol: value._rows for value in axes}
    if len(counts) != 2:
        raise NotRecordableError
    return GridSites(None, counts[False], counts[True], axes[0].device)


def _recorded_at(sites: GridSites, function: Function, args: Arguments, kwargs: Keywords) -> Any:
    """The function recorded with am and lm at these sites; None: it cannot be."""

    def at_sites(value: Any) -> Any:
        if isinstance(value, AxisTensor):
            return value.at(sites)
        return type(value)(map(at_sites, value)) if type(value) in (list, tuple) else value

    try:
        args = tuple(map(at_sites, args))
        kwargs = {key: at_sites(value) for key, value in kwargs.items()}
    except NotRecordableError:
        return None
    joint = next(v for v in flat((*args, *kwargs.values())) if isinstance(v, DeferredJoint))
    return joint.record(function, args, kwargs)


def _values(arguments: Any) -> Any:
    if isinstance(arguments, AxisTensor):
        return arguments.values
    if isinstance(arguments, dict):
        return {key: _values(value) for key, value in arguments.items()}
    return tuple(map(_values, arguments)) if isinstance(arguments, tuple) else arguments


def _shapes(arguments: Arguments) -> list[Any]:
    """Arguments that only their shapes are read of."""
    return [
        torch.empty(value.shape, device="meta") if isinstance(value, (Tensor, StandIn)) else value
        for value in arguments
    ]
