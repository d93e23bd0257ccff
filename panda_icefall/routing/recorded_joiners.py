"""The joiners of full-lattice recipes: recorded while their model runs, and never while it decodes.

Such a model calls ``self.joiner(encoder_out, decoder_out)`` with ordinary tensors ``[B, T, D]`` and
``[B, S + 1, D]``, and gives the logits to a loss. Decoding calls the same joiner from outside the
model's ``forward``.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from panda_icefall.dynamo import is_traced
from panda_icefall.routing.axis_tensor import AxisTensor
from panda_icefall.routing.joint_sites import GridSites
from panda_icefall.routing.stand_in import Report

__all__ = [
    "RecordedJoiner",
    "find_joiners",
    "has_recorded_joiner",
    "is_joiner_name",
    "not_recording",
    "recorded_arguments",
    "running",
]

_NAME = re.compile(r"joiner(?:_\w+)?|joint")
_joiners: dict[int, RecordedJoiner] = {}
_owners: dict[int, int] = {}  # of recorded joiners, and how many they have
_now = threading.local()  # owners whose forward runs in this thread


class RecordedJoiner:
    """One module whose calls are recorded while its model runs; keeps neither of them alive.

    Args:
      module: the joiner.
      owner: the module that has it and calls it.
      full_name: for messages.
      report: as of ``AxisTensor``.
    """

    def __init__(self, module: nn.Module, owner: nn.Module, full_name: str, report: Report) -> None:
        self._module = weakref.ref(module)
        self._owner = weakref.ref(owner)
        self.full_name = full_name
        self.report = report

    @property
    def module(self) -> nn.Module | None:
        """The joiner, or None once it is gone."""
        return self._module()

    @property
    def is_running(self) -> bool:
        """Whether the forward of its owner runs in this thread."""
        return bool(_depths().get(id(self._owner())))

    def install(self) -> None:
        module, owner = self._module(), self._owner()
        if module is None or owner is None or id(module) in _joiners:
            return
        _joiners[id(module)] = self
        _owners[id(owner)] = _owners.get(id(owner), 0) + 1
        # Others may get their addresses.
        weakref.finalize(module, _joiners.pop, id(module), None)
        weakref.finalize(owner, _owners.pop, id(owner), None)

    def remove(self) -> bool:
        """Record it no longer; False if it was not recorded by this."""
        module, owner = self._module(), self._owner()
        if module is None or owner is None:
            return True
        if _joiners.get(id(module)) is not self:
            return False
        del _joiners[id(module)]
        _owners[id(owner)] -= 1
        if not _owners[id(owner)]:
            del _owners[id(owner)]
        return True


def _depths() -> dict[int, int]:
    """How deep in the forward of each owner this thread is, by its id."""
    return _now.__dict__.setdefault("depths", {})


def find_joiners(model: nn.Module) -> dict[str, nn.Module]:
    """Modules called ``joiner``, ``joiner_...`` or, as in WeNet, ``joint``, by their full names."""
    return {
        path: module
        for path, module in model.named_modules()
        if is_joiner_name(path.rpartition(".")[2])
    }


def is_joiner_name(name: str) -> bool:
    """Whether a module of that name in its owner is taken for a joiner."""
    return _NAME.fullmatch(name) is not None


def has_recorded_joiner(module: nn.Module) -> bool:
    """Whether one of a module's own joiners is recorded while its forward runs."""
    return id(module) in _owners


@contextmanager
def running(module: nn.Module) -> Iterator[None]:
    """The forward of a module that has a recorded joiner runs in the enclosed block."""
    depths = _depths()
    depths[id(module)] = depths.get(id(module), 0) + 1
    try:
        yield
    finally:
        depths[id(module)] -= 1


@contextmanager
def not_recording() -> Iterator[None]:
    """Joiners are called with what they are given in the enclosed block, in this thread."""
    before = _now.__dict__.get("is_off", False)
    _now.is_off = True
    try:
        yield
    finally:
        _now.is_off = before


def recorded_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What to call a recorded joiner with; None: with what it is given.

    Its first two tensors become am and lm where they are ``[B, T, D]`` and ``[B, S + 1, E]``.
    """
    joiner = _joiners.get(id(module))
    is_off = _now.__dict__.get("is_off", False)
    if joiner is None or is_off or not joiner.is_running or is_traced():
        return None
    names: list[int | str] = [*range(len(args)), *kwargs]
    given = {name: args[name] if isinstance(name, int) else kwargs[name] for name in names}
    tensors = [(name, value) for name, value in given.items() if isinstance(value, Tensor)]
    if len(tensors) < 2:
        return None
    (am_name, am), (lm_name, lm) = tensors[:2]
    is_lattice = (
        am.dim() == lm.dim() == 3
        and am.shape[0] == lm.shape[0]
        and am.device == lm.device
        and am.is_floating_point()
        and lm.is_floating_point()
    )
    if not is_lattice:
        return None
    sites = GridSites(am.shape[0], am.shape[1], lm.shape[1], am.device)
    given[am_name] = AxisTensor(am, False, sites, joiner.report)
    given[lm_name] = AxisTensor(lm, True, sites, joiner.report)
    return tuple(given[i] for i in range(len(args))), {name: given[name] for name in kwargs}
