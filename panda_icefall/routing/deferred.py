"""``DeferredJoint``: stands for a ``[B, T, s_range, X]`` tensor and records what is done to it."""

from __future__ import annotations

from typing import Any, Callable

from panda_icefall.routing import recording
from panda_icefall.routing.site_tensor import SiteTensor


class DeferredJoint(SiteTensor):
    """A site tensor that is not there yet.

    ``k2.do_rnnt_pruning`` returns two of these while PANDA is applied. Operations listed in
    ``recording`` yield another deferred object.
    """

    def record(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return recording.record(function, args, kwargs)
