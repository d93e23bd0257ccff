"""A phase of a training step cut into its parts: encoder, losses, backward, optimizer, the rest.

:class:`PartWatch` sees where they begin and end, by hooks and wrappers while a phase lasts, and
tells :class:`PartMeter`, which measures them.
"""

import functools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from panda_icefall.routing import find_projections
from panda_icefall.routing.hosts import SYMBOLS, Kind
from panda_icefall.routing.recorded_joiners import find_joiners
from panda_icefall.runs.memory.probe import MemoryProbe, MemoryReading, Part
from panda_icefall.runs.records import (
    BACKWARD,
    ENCODER,
    FULL_LOSS,
    OPTIMIZER,
    OTHER,
    PRUNED_LOSS,
    SIMPLE_LOSS,
)
from panda_icefall.swaps import Swaps

__all__ = ["PartMeter", "PartWatch", "added_by_losses"]

# Kind of function -> its part, and whether that stays open after the function returns.
_PARTS = {
    Kind.SIMPLE_LOSS: (SIMPLE_LOSS, False),
    # From the pruning to the loss of what was pruned: the joiner in between is what it is about.
    Kind.PRUNING: (PRUNED_LOSS, True),
    Kind.PRUNED_LOSS: (PRUNED_LOSS, False),
    Kind.FULL_LOSS: (FULL_LOSS, False),
}


class PartWatch:
    """Tells a :class:`PartMeter` what a training step is doing, between install and remove.

    - ``encoder``: forward of the model's top-level submodules whose name contains ``encoder``
      (icefall's ``encoder``, ``encoder_embed``, ``mask_encoder``, ...);
    - ``simple_loss``: from the projections to classes (``simple_am_proj``, ``simple_lm_proj``), of
      which routing computes a tile at a time in the loss, to the end of ``rnnt_loss_smoothed`` or
      ``rnnt_loss_simple``;
    - ``pruned_loss``: from ``do_rnnt_pruning`` to the end of ``rnnt_loss_pruned``, so with the
      joiner, routed or dense;
    - ``full_loss``: from the joiner, of what was not pruned, to the end of a full-lattice loss;
    - ``backward``: ``torch.Tensor.backward``; ``optimizer``: the optimizer's ``step``.

    Functions are wrapped as they stand at install, in modules that are loaded by then. Names that a
    recipe bound before (``from k2 import rnnt_loss_smoothed``) are not seen. What this leaves
    installed when somebody else has wrapped it meanwhile only passes calls on.

    Args:
      meter: Is told; outside of its phases it listens to nothing.
      model: The recipe's model, without a DDP wrapper; ``None``: no encoder.
      optimizer: The recipe's optimizer, of torch or with a ``step`` of its own; ``None``: none.
      names: What the projections are called; ``None``: as in icefall.
    """

    def __init__(
        self,
        meter: "PartMeter",
        model: nn.Module | None,
        optimizer: Any,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self._meter = meter
        self._optimizer = optimizer
        children = () if model is None else model.named_children()
        self._encoders = [module for name, module in children if "encoder" in name]
        self._projections = [] if model is None else list(find_projections(model, names).values())
        self._joiners = [] if model is None else list(find_joiners(model).values())
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._swaps = Swaps()

    def install(self, *, has_forward: bool = True) -> None:
        """Put the hooks and wrappers in place.

        Args:
          has_forward: Whether the model's forward is to come. Where it is not, the model stays
            without hooks: recipes save and copy it then.
        """
        enter, leave = self._meter.enter, self._meter.leave
        if has_forward:
            self._watch(self._encoders, _PartHook(ENCODER, enter), _PartHook(ENCODER, leave))
            hold = functools.partial(leave, is_held=True)
            self._watch(
                self._projections, _PartHook(SIMPLE_LOSS, enter), _PartHook(SIMPLE_LOSS, hold)
            )
            self._watch(
                self._joiners,
                _PartHook(FULL_LOSS, self._enter_joiner),
                _PartHook(FULL_LOSS, hold),
            )
        for symbol in (s for s in SYMBOLS if s.kind in _PARTS):
            for module in map(sys.modules.get, symbol.hosts):
                if callable(getattr(module, symbol.name, None)):
                    self._wrap(module, symbol.name, *_PARTS[symbol.kind])
        self._wrap(torch.Tensor, "backward", BACKWARD)
        if callable(getattr(self._optimizer, "step", None)):
            # A torch scheduler leaves its counting wrapper on the instance, and calls pass by the
            # class. Elsewhere the instance must stay clean: it may be copied or pickled as it is.
            own = getattr(self._optimizer, "__dict__", {}).get("step")
            self._wrap(self._optimizer if own else type(self._optimizer), "step", OPTIMIZER)

    def remove(self) -> None:
        """Put back what stood there; does nothing where nothing is installed."""
        while self._hooks:
            self._hooks.pop().remove()
        self._swaps.undo()

    def _enter_joiner(self, part: str) -> None:
        if self._meter.current != PRUNED_LOSS:
            self._meter.enter(part)

    def _watch(self, modules: list[nn.Module], before: "_PartHook", after: "_PartHook") -> None:
        for module in modules:
            self._hooks.append(module.register_forward_pre_hook(before))
            self._hooks.append(module.register_forward_hook(after))

    def _wrap(self, owner: Any, name: str, part: str, is_held: bool = False) -> None:
        function = getattr(owner, name)
        meter = self._meter

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            meter.enter(part)
            try:
                result = function(*args, **kwargs)
            except BaseException:
                meter.leave(part)
                raise
            meter.leave(part, is_held=is_held)
            return result

        self._swaps.replace(owner, name, measured)


class _PartHook:
    """A module hook that tells the meter; copies of it, with a copied model, are silent."""

    def __init__(self, part: str, tell: Callable[[str], None] | None = None) -> None:
        self._part = part
        self._tell = tell

    def __call__(self, *_: Any) -> None:
        if self._tell is not None:
            self._tell(self._part)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_PartHook, (self._part,))


class PartMeter:
    """Cuts the time between :meth:`start` and :meth:`finish` into named stretches without gaps.

    Between two boundaries everything belongs to one part: the outermost that was entered, else the
    one that is held open, else ``other``. The peak is reset at each boundary; on CUDA the device
    is synchronised there, so that work is counted where it was launched and a measured step takes
    longer than one that is not.

    Args:
      probe: Measures the device that trains.
    """

    def __init__(self, probe: MemoryProbe) -> None:
        self._probe = probe
        self._is_running = False
        self._parts: dict[str, Part] = {}
        self._entered: list[str] = []
        self._held: str | None = None
        self._since = 0.0

    def start(self) -> None:
        """Begin a phase, in ``other``."""
        self._parts = {}
        self._entered = []
        self._held = None
        self._is_running = True
        self._probe.start()
        self._since = time.perf_counter()

    def enter(self, name: str) -> None:
        """Begin part ``name``; inside another part it belongs to that one."""
        if not self._is_running:
            return
        before = self.current
        self._entered.append(name)
        if self._held != name:
            self._held = None
        self._cut(before)

    def leave(self, name: str, *, is_held: bool = False) -> None:
        """End part ``name``, with whatever was entered inside it and not left.

        Args:
          name: As given to :meth:`enter`; without a matching call nothing happens.
          is_held: Keep the part open until it is left without this, or another one is entered.
        """
        if not self._is_running or name not in self._entered:
            return
        before = self.current
        while self._entered.pop() != name:
            pass
        self._held = name if is_held and not self._entered else None
        self._cut(before)

    def finish(self) -> tuple[Part, dict[str, Part]]:
        """End the phase: the whole of it, and its parts by name in the order of their first time.

        The seconds of the whole are the sum, and its peak the largest, of its parts.
        """
        assert self._is_running, "finish() without start()"
        self._book(self.current, self._probe.read())
        self._is_running = False
        first, *rest = self._parts.values()
        return sum(rest, first), self._parts

    @property
    def current(self) -> str:
        return self._entered[0] if self._entered else self._held or OTHER

    def _cut(self, before: str) -> None:
        if self.current != before:
            self._book(before, self._probe.cut())

    def _book(self, name: str, reading: MemoryReading) -> None:
        # The reading has waited for the device: the clock is read after it.
        now = time.perf_counter()
        part = Part(now - self._since, 1, reading)
        self._since = now
        self._parts[name] = self._parts[name] + part if name in self._parts else part


def added_by_losses(readings: Mapping[str, MemoryReading]) -> int | None:
    """What the losses of a step added, in forward, to the memory that the encoder had left.

    Args:
      readings: Memory at the end of each part of the step, and its peak, by the part's name.

    Returns:
      Bytes; ``None`` where the encoder, the losses or their peaks were not measured.
    """
    losses = [readings[name] for name in (SIMPLE_LOSS, PRUNED_LOSS, FULL_LOSS) if name in readings]
    encoder = readings.get(ENCODER)
    if not losses or encoder is None or any(part.is_since_start for part in (*losses, encoder)):
        return None
    return max(0, max(part.peak_bytes for part in losses) - encoder.current_bytes)
