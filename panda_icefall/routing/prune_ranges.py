"""``get_rnnt_prune_ranges`` of batches that a host refuses, or gives too narrow a band."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from panda_icefall.dynamo import is_traced, opaque
from panda_icefall.losses import pruning
from panda_icefall.routing.replaced import RoutingState


def complete_prune_ranges(original: Callable[..., Any], state: RoutingState) -> Callable[..., Any]:
    """The host's own ranges where it gives them, else those of ``losses.pruning``.

    k2 1.23.4 asserts ``T >= S`` and ``S >= 1`` of the padded batch, also of the regular lattice,
    where a path needs neither; k2 of 2025 asserts ``S >= 1``. And 1.23.4 does not raise ``s_range``
    where an utterance has more than ``s_range - 1`` symbols per frame: its loss is inf then. That
    is looked at where the boundary is on the CPU, so that no device is waited for.

    Raises of the result: ValueError, naming the utterance, where no ranges are defined.
    """

    @functools.wraps(original)
    @opaque
    def get_rnnt_prune_ranges(px_grad: Any, py_grad: Any, boundary: Any, s_range: Any) -> Any:
        given = px_grad, py_grad, boundary, s_range
        are_tensors = all(isinstance(value, Tensor) for value in given[:3])
        if state.options is None or not are_tensors or is_traced():
            return original(*given)
        if _is_too_narrow(px_grad, py_grad, boundary, s_range):
            return pruning.get_rnnt_prune_ranges(*given)
        try:
            return original(*given)
        except AssertionError:
            return pruning.get_rnnt_prune_ranges(*given)

    return get_rnnt_prune_ranges


def _is_too_narrow(px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> bool:
    """Whether an utterance of a regular lattice cannot reach its last symbol in the band."""
    is_regular = px_grad.shape[-1] == py_grad.shape[-1] + 1
    if not is_regular or boundary.is_cuda or boundary.dim() != 2 or boundary.shape[1] != 4:
        return False
    S = px_grad.shape[1]
    return s_range <= S and bool((boundary[:, 2] > (s_range - 1) * boundary[:, 3]).any())
