"""The prune ranges of a batch's dense pass, which its other passes are handed.

They are chosen by comparing occupations of the simple loss. Two that tie but for rounding may be
ordered otherwise in another arm; its pruned loss would then be one over other sites, and the
distance to the dense one would not be rounding's.
"""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Callable

import torch
from torch import Tensor

from panda_icefall.routing.hosts import Kind, names_of
from panda_icefall.runs.contract.wrapped_function import wrapped_function

__all__ = ["PruneRanges", "RangesComparison"]


@dataclass
class RangesComparison:
    """How often a pass would have chosen other ranges than those it was handed.

    Attributes:
      frames: Frames inside the boundary.
      frames_differing: Those of them whose own ranges differ in any place.
      problems: Why ranges of the dense pass could not be handed on, in words.
    """

    frames: int = 0
    frames_differing: int = 0
    problems: list[str] = field(default_factory=list)


class PruneRanges:
    """What ``get_rnnt_prune_ranges`` gave in one dense pass, in the order of its calls."""

    def __init__(self) -> None:
        self._ranges: list[Tensor] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep the results of the enclosed block, in place of earlier ones."""
        self._ranges = []

        def keep(own: Tensor, boundary: Any) -> Tensor:
            self._ranges.append(own.clone())
            return own

        with _results_through(keep):
            yield

    @contextlib.contextmanager
    def handed_on(self) -> Iterator[RangesComparison]:
        """Give the recorded results to the calls of the enclosed block, in their order.

        A call without a recorded result of its shape keeps its own, and that is a problem.

        Yields:
          The comparison over all calls so far.
        """
        found = RangesComparison()
        left = list(reversed(self._ranges))

        def hand_on(own: Tensor, boundary: Any) -> Tensor:
            given = left.pop() if left else None
            if given is None or given.shape != own.shape:
                dense = "none" if given is None else f"shape {tuple(given.shape)}"
                found.problems.append(
                    f"prune ranges: the dense arm chose {dense}, the routed arm shape "
                    f"{tuple(own.shape)}"
                )
                return own
            differs, live = (own != given).any(dim=2), _live_frames(own, boundary)
            found.frames += int(live.sum())
            found.frames_differing += int((differs & live).sum())
            return given.clone()

        with _results_through(hand_on):
            yield found


def _live_frames(ranges: Tensor, boundary: Any) -> Tensor:
    """Bool ``[B, T]``, those before each utterance's last."""
    frame = torch.arange(ranges.shape[1], device=ranges.device).expand(ranges.shape[:2])
    if not isinstance(boundary, Tensor):
        return torch.ones_like(frame, dtype=torch.bool)
    return frame < boundary[:, 3:].to(ranges.device)


def _results_through(
    change: Callable[[Tensor, Any], Tensor],
) -> contextlib.AbstractContextManager[None]:
    def changed(original: Callable[..., Any], given: inspect.BoundArguments) -> Tensor:
        return change(original(*given.args, **given.kwargs), given.arguments.get("boundary"))

    (name,) = names_of(Kind.PRUNE_RANGES)
    return wrapped_function(name, changed)
