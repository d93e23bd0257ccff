"""Calls of projections to classes: the linear layers in them give stand-ins.

The recipes' ``simple_am_proj`` and ``simple_lm_proj`` feed little but ``k2.rnnt_loss_smoothed``,
and ``ctc_output`` little but ``ctc_loss``. While one of them is called, each linear layer in it
that gives all classes, however its weight was made, gives a stand-in from which that loss reads
input, weight and bias. Nothing is left on the module itself: copies, replicas, exports and
checkpoints of it are as without PANDA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from panda_icefall.dynamo import is_traced, opaque
from panda_icefall.routing.custom_functions import enclosing_function
from panda_icefall.routing.finding_projections import classes_of
from panda_icefall.routing.observing import blind_hooks, say_blind_hooks
from panda_icefall.routing.projection_call import ProjectionCall, is_computing_projection
from panda_icefall.routing.projections import DeferredProjection
from panda_icefall.routing.stand_in import Report, StandIn

__all__ = ["RecordedProjection", "recorded_projection"]

_MATRIX_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}


@dataclass(eq=False)
class RecordedProjection:
    """One module whose calls are recorded while it is installed.

    Attributes:
      module: the projection; a replica of it (``nn.DataParallel``) is another module, and plain.
      name: for counters, ``simple_am_proj``.
      full_name: for messages.
      report: as of ``DeferredProjection``.
      kind: of the stand-ins that its linear layers give.
    """

    module: nn.Module
    name: str
    full_name: str
    report: Report
    kind: type[DeferredProjection] = DeferredProjection
    _is_given_up: bool = field(default=False, init=False)

    def install(self) -> None:
        _recorded[id(self.module)] = self

    def remove(self) -> bool:
        """Record it no longer; False if it was not recorded by this."""
        if _recorded.get(id(self.module)) is not self:
            return False
        del _recorded[id(self.module)]
        return True

    @opaque
    def call(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """What the module gives, recorded where it can be.

        Args:
          original: ``nn.Module.__call__``.
          args, kwargs: what the module is given.
        """
        if is_traced() or self._is_given_up:
            return original(self.module, *args, **kwargs)
        if (function := enclosing_function()) is not None:
            # Reentrant checkpoints, which compute again in backward, and want a tensor there too.
            self._is_given_up = True
            self.report(f"{self.name}: inside {function}")
            return original(self.module, *args, **kwargs)
        if "backward" in blind_hooks(self.module):
            # Somebody waits for the gradient of the output, which would never be there.
            self.report(f"{self.name}: backward hook")
            return original(self.module, *args, **kwargs)
        # What torch.compile wraps has a linear layer to compile, which is not to be computed.
        module = self.module._modules.get("_orig_mod") or self.module
        with _DeferredLinears(self, classes_of(module)):
            found = original(module, *args, **kwargs)
        if isinstance(found, StandIn):
            say_blind_hooks(self.module)
        return found


_recorded: dict[int, RecordedProjection] = {}


def recorded_projection(module: nn.Module) -> RecordedProjection | None:
    """What records the calls of this very module, if anything does."""
    return _recorded.get(id(module))


class _DeferredLinears(TorchFunctionMode):
    """Gives stand-ins for linear layers on a ``[B, R, D]`` tensor that give all classes.

    Only for those: where one has to become a tensor at once, it is the layer that computes it.

    Args:
      projection: whose layers they are.
      classes: of its result; None: those of the first linear layer.
    """

    def __init__(self, projection: RecordedProjection, classes: int | None) -> None:
        super().__init__()
        self._projection = projection
        self._classes = classes

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if is_computing_projection():
            return function(*args, **kwargs)
        call = None
        if function is F.linear:
            call = ProjectionCall.of(self._projection.name, *args, **kwargs)
        elif function in _MATRIX_PRODUCTS and len(args) == 2 and not kwargs:
            weight = args[1].t() if isinstance(args[1], Tensor) and args[1].dim() == 2 else None
            call = ProjectionCall.of(self._projection.name, args[0], weight)
        if call is None or self._classes not in (None, call.weight.shape[0]):
            return function(*args, **kwargs)
        self._classes = call.weight.shape[0]
        return self._projection.kind(call, call.dtype, self._projection.report)
