"""What every pruned loss of a pass reads and returns, whichever way the loss is computed."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from panda_icefall import routing
from panda_icefall.losses.dense import dense_log_probs
from panda_icefall.losses.sites import SiteLogProbs, inside_boundary, next_symbols
from panda_icefall.routing.hosts import Kind, names_of
from panda_icefall.runs.contract.wrapped_function import wrapped_function

__all__ = ["ObservedLoss", "log_probs_of_logits", "observed_losses"]

# Small beside the logits of any recipe: the dense loss makes copies of all of them at once.
_CHUNK_BYTES = 4 * 2**20


class ObservedLoss(NamedTuple):
    """One pruned loss of a pass.

    Attributes:
      value: What it returned, detached: a scalar, or ``[B]`` without a reduction.
      log_probs: What it read at its sites.
    """

    value: Tensor
    log_probs: SiteLogProbs


@contextlib.contextmanager
def observed_losses(callback: Callable[[ObservedLoss], None]) -> Iterator[None]:
    """Call ``callback`` with every ``rnnt_loss_pruned`` of the enclosed block.

    A routed loss reports its own log-probs; of any other they are computed from the logits it was
    given, once it has returned.

    Memory: the reported tensors, 13 bytes per site in either arm beside ``4 C`` of the logits. What
    the dense arm needs for them besides, a few chunks of 4 MiB, is needed while its loss holds less
    than at its own peak, so that the dense peak of the contract's table is not raised.

    Args:
      callback: Called once per loss, in order, with detached tensors.
    """

    def observe(original: Callable[..., Any], given: inspect.BoundArguments) -> Any:
        reported: list[SiteLogProbs] = []
        with routing.observed(reported.append):
            loss = original(*given.args, **given.kwargs)
        if not reported:
            given.apply_defaults()
            reported.append(log_probs_of_logits(given.arguments))
        callback(ObservedLoss(loss.detach(), reported[-1]))
        return loss

    (name,) = names_of(Kind.PRUNED_LOSS)
    with wrapped_function(name, observe):
        yield


def log_probs_of_logits(arguments: Mapping[str, Any]) -> SiteLogProbs:
    """The log-probs that a dense pruned loss makes of its logits, some rows at a time.

    Args:
      arguments: Those of ``k2.rnnt_loss_pruned`` by name; its logits ``[B, T, s_range, C]`` are a
        tensor, or a recorded joiner that has been turned into one.

    Returns:
      Detached float32 log-probs, float64 of float64 logits.
    """
    logits, ranges = arguments["logits"], arguments["ranges"]
    if not isinstance(logits, Tensor):
        logits = logits.materialise("observed log-probs")
    blank = int(arguments["termination_symbol"])
    targets = next_symbols(arguments["symbols"], ranges, blank).long().reshape(-1)
    rows = logits.detach().reshape(-1, logits.shape[-1])
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    chunk = max(1, _CHUNK_BYTES // (rows.shape[1] * (torch.finfo(dtype).bits // 8)))
    # [3, N]: target, blank, log_z
    found = torch.empty((3, rows.shape[0]), dtype=dtype, device=rows.device)
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        for low in range(0, rows.shape[0], chunk):
            part = slice(low, low + chunk)
            found[:, part] = torch.stack(
                dense_log_probs(
                    rows[part].to(dtype),
                    targets[part],
                    blank,
                    bool(arguments.get("use_hat_loss", False)),
                )
            )
    target, blank_logp, log_z = found.reshape(3, *ranges.shape)
    return SiteLogProbs(target, blank_logp, log_z, inside_boundary(ranges, arguments["boundary"]))
