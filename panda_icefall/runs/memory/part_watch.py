"""Where the parts of a training step begin and end: hooks and wrappers while a phase lasts."""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch
from torch import nn

from panda_icefall.routing import find_projections
from panda_icefall.routing.hosts import HOSTS
from panda_icefall.runs.memory.parts import PartMeter

__all__ = ["ENCODER", "LOSS_PARTS", "PartWatch"]

ENCODER = "encoder"
LOSS_PARTS = _SIMPLE, _PRUNED = "simple_loss", "pruned_loss"
_LOSS_FUNCTIONS = (
    # (function, part, whether the part stays open after it returns)
    ("rnnt_loss_simple", _SIMPLE, False),
    ("rnnt_loss_smoothed", _SIMPLE, False),
    # From the pruning to the loss of what was pruned: the joiner in between is what it is about.
    ("do_rnnt_pruning", _PRUNED, True),
    ("rnnt_loss_pruned", _PRUNED, False),
)
_MISSING = object()


@dataclass(frozen=True)
class _Wrapper:
    """One attribute, ours and what stood there (``_MISSING``: it was inherited)."""

    owner: Any
    name: str
    original: Any
    ours: Callable[..., Any]


class PartWatch:
    """Tells a :class:`PartMeter` what a training step is doing, between install and remove.

    - ``encoder``: forward of the model's top-level submodules whose name contains ``encoder``
      (icefall's ``encoder``, ``encoder_embed``, ``mask_encoder``, ...);
    - ``simple_loss``: from the projections to classes (``simple_am_proj``, ``simple_lm_proj``), of
      which routing computes a tile at a time in the loss, to the end of ``rnnt_loss_smoothed`` or
      ``rnnt_loss_simple``;
    - ``pruned_loss``: from ``do_rnnt_pruning`` to the end of ``rnnt_loss_pruned``, so with the
      joiner, routed or dense;
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
        meter: PartMeter,
        model: Optional[nn.Module],
        optimizer: Any,
        names: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._meter = meter
        self._optimizer = optimizer
        children = () if model is None else model.named_children()
        self._encoders = [module for name, module in children if "encoder" in name]
        self._projections = [] if model is None else list(find_projections(model, names).values())
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._wrappers: list[_Wrapper] = []

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
            self._watch(self._projections, _PartHook(_SIMPLE, enter), _PartHook(_SIMPLE, hold))
        for module_name in HOSTS:
            module = sys.modules.get(module_name)
            for name, part, is_held in _LOSS_FUNCTIONS:
                if callable(getattr(module, name, None)):
                    self._wrap(module, name, part, is_held)
        self._wrap(torch.Tensor, "backward", "backward")
        if callable(getattr(self._optimizer, "step", None)):
            # A torch scheduler leaves its counting wrapper on the instance, and calls pass by the
            # class. Elsewhere the instance must stay clean: it may be copied or pickled as it is.
            own = getattr(self._optimizer, "__dict__", {}).get("step")
            self._wrap(self._optimizer if own else type(self._optimizer), "step", "optimizer")

    def remove(self) -> None:
        """Put back what stood there; does nothing where nothing is installed."""
        while self._hooks:
            self._hooks.pop().remove()
        while self._wrappers:
            wrapper = self._wrappers.pop()
            if vars(wrapper.owner).get(wrapper.name) is not wrapper.ours:
                continue
            if wrapper.original is _MISSING:
                delattr(wrapper.owner, wrapper.name)
            else:
                setattr(wrapper.owner, wrapper.name, wrapper.original)

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

        original = vars(owner).get(name, _MISSING)
        self._wrappers.append(_Wrapper(owner, name, original, measured))
        setattr(owner, name, measured)


class _PartHook:
    """A module hook that tells the meter; copies of it, with a copied model, are silent."""

    def __init__(self, part: str, tell: Optional[Callable[[str], None]] = None) -> None:
        self._part = part
        self._tell = tell

    def __call__(self, *_: Any) -> None:
        if self._tell is not None:
            self._tell(self._part)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_PartHook, (self._part,))
