"""What a joiner does that cannot be recorded: whether it may be called for some sites at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from panda_icefall.dtypes import HALVES
from panda_icefall.routing.errors import PandaError
from panda_icefall.routing.module_calls import random_states
from panda_icefall.routing.nodes import version_of
from panda_icefall.swaps import Swaps

__all__ = ["JoinerState", "RowFacts", "facts_of_a_row", "why_not_by_calls"]


class JoinerState:
    """The random state and a module's buffers, to begin again with."""

    def __init__(self, joiner: Any, device: torch.device) -> None:
        buffers = joiner.buffers() if isinstance(joiner, nn.Module) else ()
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]
        self._random = random_states(device)

    def has_changed(self) -> bool:
        """Whether a buffer has another value now."""
        return any(not torch.equal(buffer, before) for buffer, before in self._buffers)

    def restore(self) -> None:
        for generator, state in self._random:
            generator.set_state(state)
        with torch.no_grad():
            for buffer, before in self._buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def why_not_by_calls(
    joiner: Any, block: tuple[Tensor, Tensor], single: Callable[[], Tensor]
) -> str | None:
    """Why a joiner must be given all of its lattice at once, or None.

    It is called for a small block of sites, and for each of them by itself, without dropout.

    Args:
      block: am and lm of ``[b, t, s]`` sites.
      single: the logits ``[b * t * s, C]`` of the same sites, each by itself.
    """
    state = JoinerState(joiner, block[0].device)
    try:
        with torch.no_grad(), _no_dropout():
            of_block, again = (joiner(*(x.clone() for x in block)) for _ in range(2))
            changes_buffers = state.has_changed()
            of_sites = single()
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        return f"it raised {type(error).__name__} for some of its sites"
    finally:
        state.restore()
    if changes_buffers:
        return "it changes its buffers"
    if not isinstance(of_block, Tensor) or of_block.numel() != of_sites.numel():
        return "its logits have another shape than [B, T, S + 1, C]"
    if not _is_close(of_block, again):
        return "it draws random numbers"
    return None if _is_close(of_block, of_sites) else "its logits at one site depend on other sites"


def _is_close(first: Tensor, second: Tensor) -> bool:
    """But for the order of sums."""
    eps = torch.finfo(first.dtype).eps * (8 if first.dtype in HALVES else 256)
    first, second = first.reshape(-1).double(), second.reshape(-1).double()
    scale = first[first.isfinite()].abs().max() if first.isfinite().any() else first.new_ones(())
    return torch.allclose(first, second, rtol=0, atol=float(eps * scale), equal_nan=True)


@contextmanager
def _no_dropout() -> Iterator[None]:
    with Swaps() as swaps:
        swaps.replace(F, "dropout", lambda input, *args, **kwargs: input)
        yield


@dataclass(frozen=True, eq=False)
class RowFacts:
    """What one call of a joiner shows.

    Attributes:
      classes: C.
      bytes: of the tensors that it makes for a site.
      read: leaves that its logits depend on, and their versions.
    """

    classes: int
    bytes: int
    read: list[tuple[Tensor, int]]

    def check_unchanged(self) -> None:
        """Refuse to compute backward with other values than forward.

        Raises:
          PandaError: a parameter was changed in place since.
        """
        for tensor, version in self.read:
            if version_of(tensor) != version:
                raise PandaError(
                    f"a tensor of shape {tuple(tensor.shape)} that the joiner read was changed in "
                    f"place before backward: got version {version_of(tensor)}, expected {version}; "
                    "the joiner runs again in backward, so change it after that"
                )


def facts_of_a_row(call: Callable[[], Tensor]) -> RowFacts:
    """Of a call that gives the logits ``[1, C]`` of one site."""
    with torch.enable_grad(), _BytesMade() as made:
        logits = call()
    reached, seen = [logits.grad_fn], set()
    read = []
    while reached:
        node = reached.pop()
        if node is not None and node not in seen:
            seen.add(node)
            reached += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                read.append((node.variable, version_of(node.variable)))
    return RowFacts(logits.shape[1], made.bytes, read)


class _BytesMade(TorchDispatchMode):
    """Counts the bytes of the tensors that operations give, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and not value._is_view():
                self.bytes += value.numel() * value.element_size()
        return result
