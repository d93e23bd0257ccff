"""What is put around the hosts' functions in the passes of one batch.

Pruned and full-lattice losses are observed, and prune ranges handed on.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from panda_icefall import routing
from panda_icefall.losses.dense import dense_log_probs
from panda_icefall.losses.sites import SiteLogProbs, inside_boundary, next_symbols
from panda_icefall.routing.hosts import Kind, loaded_functions, names_of
from panda_icefall.routing.routed_full_loss import full_sites
from panda_icefall.runs.contract.result import RangesComparison
from panda_icefall.swaps import Swaps

__all__ = [
    "ObservedLoss",
    "PruneRanges",
    "log_probs_of_logits",
    "observed_losses",
    "wrapped_function",
]

Around = Callable[[Callable[..., Any], inspect.BoundArguments], Any]

# Small beside the logits of any recipe: the dense loss makes copies of all of them at once.
_CHUNK_BYTES = 4 * 2**20


@contextlib.contextmanager
def wrapped_function(name: str, around: Around, module: ModuleType | None = None) -> Iterator[None]:
    """Let ``around(original, arguments)`` answer the calls of a function.

    It is replaced where routing replaces functions, on top of whatever stands there. A module
    without such a function stays as it is.

    Args:
      name: The function's.
      around: Given the function that was there and the call's arguments, bound to its parameters,
        without defaults.
      module: That has it; ``None``: the main one.
    """
    module = module or routing.patched_module()
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, signature.bind(*args, **kwargs))

    with Swaps() as swaps:
        swaps.replace(module, name, wrapper)
        yield


class ObservedLoss(NamedTuple):
    """One pruned or full-lattice loss of a pass.

    Attributes:
      kind: Which of the two, in words.
      value: What it returned, detached: a scalar, or ``[B]`` without a reduction.
      log_probs: What it read at its sites.
    """

    kind: str
    value: Tensor
    log_probs: SiteLogProbs


@contextlib.contextmanager
def observed_losses(callback: Callable[[ObservedLoss], None]) -> Iterator[None]:
    """Call ``callback`` with every pruned and every full-lattice loss of the enclosed block.

    A routed loss reports its own log-probs; of any other they are computed from the logits it was
    given, once it has returned.

    Memory: the reported tensors, 13 bytes per site in either arm beside ``4 C`` of the logits. What
    the dense arm needs for them besides, a few chunks of 4 MiB, is needed while its loss holds less
    than at its own peak, so that the dense peak of the contract's table is not raised.

    Args:
      callback: Called once per loss, in order, with detached tensors.
    """

    def observe(kind: Kind, original: Callable[..., Any], given: inspect.BoundArguments) -> Any:
        reported: list[SiteLogProbs] = []
        with routing.observed(reported.append):
            loss = original(*given.args, **given.kwargs)
        if not reported:
            given.apply_defaults()
            reported.append(log_probs_of_logits(given.arguments))
        callback(ObservedLoss(kind.value, loss.detach(), reported[-1]))
        return loss

    with contextlib.ExitStack() as stack:
        for kind in (Kind.PRUNED_LOSS, Kind.FULL_LOSS):
            for module, name in loaded_functions(kind):
                around = functools.partial(observe, kind)
                stack.enter_context(wrapped_function(name, around, module))
        yield


def log_probs_of_logits(arguments: Mapping[str, Any]) -> SiteLogProbs:
    """The log-probs that a dense loss makes of its logits, some rows at a time.

    Args:
      arguments: Those of ``k2.rnnt_loss_pruned``, or of a host's full-lattice loss, by name; its
        logits are a tensor, or a recorded joiner that has been turned into one.

    Returns:
      Detached float32 log-probs, float64 of float64 logits.
    """
    logits = arguments["logits"]
    if not isinstance(logits, Tensor):
        logits = logits.materialise("observed log-probs")
    rows = logits.detach().reshape(-1, logits.shape[-1])
    has_hat = bool(arguments.get("use_hat_loss", False))
    if "ranges" in arguments:
        ranges, blank = arguments["ranges"], int(arguments["termination_symbol"])
        targets = next_symbols(arguments["symbols"], ranges, blank).long().reshape(-1)
        target, blank_logp, log_z = _selected(rows, None, targets, blank, has_hat).reshape(
            3, *ranges.shape
        )
        live = inside_boundary(ranges, arguments["boundary"])
        return SiteLogProbs(target, blank_logp, log_z, live)
    sites = full_sites({**arguments, "logits": logits})
    position = None if logits.dim() == 2 else sites.position
    blank = sites.spec.termination_symbol
    return sites.observed(*_selected(rows, position, sites.next_symbols(), blank, has_hat))


def _selected(
    rows: Tensor, position: Tensor | None, targets: Tensor, blank: int, has_hat: bool
) -> Tensor:
    """``[3, N]``: the log-probs of target and blank, and ``log_z``.

    Args:
      rows: Logits ``[M, C]``.
      position: Int64 ``[N]``, those that are read; ``None``: all of them.
      targets: Int64 ``[N]``.
    """
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    chunk = max(1, _CHUNK_BYTES // (rows.shape[1] * (torch.finfo(dtype).bits // 8)))
    found = torch.empty((3, targets.shape[0]), dtype=dtype, device=rows.device)
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        for low in range(0, targets.shape[0], chunk):
            part = slice(low, low + chunk)
            read = rows[part] if position is None else rows.index_select(0, position[part])
            log_probs = dense_log_probs(read.to(dtype), targets[part], blank, has_hat)
            found[:, part] = torch.stack(log_probs[:3])
    return found


class PruneRanges:
    """The prune ranges of a batch's dense pass, which its other passes are handed.

    They are chosen by comparing occupations of the simple loss. Two that tie but for rounding may
    be ordered otherwise in another arm; its pruned loss would then be one over other sites, and the
    distance to the dense one would not be rounding's.
    """

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
