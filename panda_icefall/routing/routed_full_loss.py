"""What the hosts' full-lattice losses are replaced by: they take a recorded joiner."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.cuda_graphs import check_not_captured
from panda_icefall.dynamo import opaque
from panda_icefall.losses.heads import PlainHead, head_of
from panda_icefall.losses.of_logits import sites_of_lengths
from panda_icefall.losses.sites import FullSites
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.routing.after_losses import recorded_loss
from panda_icefall.routing.heads import is_log_softmax
from panda_icefall.routing.hosts import Kind, as_k2_arguments
from panda_icefall.routing.joint_sites import GridSites, PackedSites
from panda_icefall.routing.observing import current_observer
from panda_icefall.routing.replaced import RoutingState
from panda_icefall.routing.routed_loss import row_logits, why_not
from panda_icefall.routing.site_tensor import SiteTensor
from panda_icefall.routing.status import LossTotals

Function = Callable[..., Any]


def routed_full_loss(original: Function, state: RoutingState) -> Function:
    """``k2.rnnt_loss``, torchaudio's, or ``optimized_transducer.transducer_loss``, routed."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    @opaque
    def full_loss(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        arguments, options = given.arguments, state.options
        logits = arguments["logits"]
        reason = "it was given ordinary logits"
        if isinstance(logits, SiteTensor):
            refusal = "PANDA was reverted" if options is None else _why_not(logits, arguments)
            if refusal is None:
                loss = compute(logits, arguments, state)
                state.counters.add(LossTotals(losses_routed=1))
                return loss
            reason = refusal
        state.refuse_dense(original, reason)
        if isinstance(logits, SiteTensor):
            arguments["logits"] = logits.materialise(reason)
        elif options is not None:
            state.say_once(
                f"{original.__module__.partition('.')[0]}.{original.__name__} was given ordinary "
                "logits and is computed as without PANDA. A joiner is recorded in the forward of a "
                "model that was given to apply(), where it is called joiner, joiner_... or joint"
            )
        state.counters.add(LossTotals(losses_dense=1))
        return original(*given.args, **given.kwargs)

    return full_loss


def _why_not(logits: SiteTensor, arguments: Mapping[str, Any]) -> str | None:
    """The reason these recorded logits cannot be routed, or None."""
    if arguments.get("return_grad", False):
        return "return_grad"
    takes_log_probs = arguments.get("from_log_softmax", False)
    takes_log_probs |= not arguments.get("fused_log_softmax", True)
    # A log_softmax is idempotent; a clamp of log-probs is another one than of logits.
    if takes_log_probs and not is_log_softmax(logits.node):
        return "log-probs that are no log_softmax"
    if takes_log_probs and arguments.get("clamp", -1) > 0:
        return "clamp of log-probs"
    if not isinstance(logits.sites, (GridSites, PackedSites)):
        return "logits of a pruned lattice"
    return why_not(logits)


def compute(logits: SiteTensor, arguments: Mapping[str, Any], state: RoutingState) -> Tensor:
    """The loss that the host would return for the recorded logits.

    Args:
      logits: recorded; ``_why_not`` gave None.
      arguments: those of the host's loss by name.
      state: PANDA is applied.

    Raises:
      ValueError, TypeError: as ``full_sites``; or a packed joiner was given other lengths.
    """
    assert state.options is not None
    check_not_captured("a transducer loss of PANDA's")
    clamp = arguments.get("clamp", -1)
    head = head_of(bool(arguments.get("use_hat_loss", False)))
    is_shift_free = clamp <= 0 and isinstance(head, PlainHead)
    is_packed = isinstance(logits.sites, PackedSites)
    if isinstance(logits.sites, PackedSites):
        _check_lengths(logits.sites, arguments)
    sites = full_sites(arguments)
    options, position = state.options.tiles, None if is_packed else sites.position
    with torch.set_grad_enabled(torch.is_grad_enabled() and logits.grad_enabled):
        loss = recorded_loss(
            Kind.FULL_LOSS.value,
            logits,
            lambda: row_logits(logits, is_shift_free=is_shift_free, position=position),
            sites,
            head,
            options,
            clamp=clamp if clamp > 0 else None,
            counters=state.counters.tiles,
            observer=current_observer(),
        )
    return loss.to(logits.dtype) if logits.dtype in (torch.float32, torch.float64) else loss


def _check_lengths(packed: PackedSites, arguments: Mapping[str, Any]) -> None:
    """Refuse lengths that are not those that a packed joiner was given.

    Raises:
      ValueError: naming both.
    """
    lengths = [arguments["logit_lengths"].tolist(), (arguments["target_lengths"] + 1).tolist()]
    if lengths != [list(packed.frames), list(packed.states)]:
        raise ValueError(
            f"logits: got {list(packed.frames)} frames and {list(packed.states)} states, "
            f"expected logit_lengths {lengths[0]} and target_lengths + 1 {lengths[1]}"
        )


def full_sites(arguments: Mapping[str, Any]) -> FullSites:
    """The sites of a host's full lattice.

    Args:
      arguments: of the host's loss, by name; of the logits only the shape and the device are read.

    Raises:
      ValueError, TypeError: they do not fit each other, or the logits.
    """
    logits = arguments["logits"]
    classes, is_packed = logits.shape[-1], len(logits.shape) == 2
    name = "symbols" if "symbols" in arguments else "targets"
    B, S = logits.shape[0], 0 if is_packed else logits.shape[2] - 1
    if not is_packed and tuple(arguments[name].shape) != (B, S):
        raise ValueError(
            f"{name}: got shape {tuple(arguments[name].shape)}, expected [B, S] = [{B}, {S}] for "
            f"logits of shape {tuple(logits.shape)}"
        )
    if name == "symbols":  # k2
        return FullSites.of(LatticeSpec.of(as_k2_arguments(arguments)), classes, logits.shape[1])
    frames = arguments["logit_lengths"]
    return sites_of_lengths(
        arguments["targets"].to(logits.device),
        frames,
        arguments["target_lengths"],
        T=max(frames.tolist(), default=0) if is_packed else logits.shape[1],
        classes=classes,
        blank=arguments["blank"],
        reduction=arguments["reduction"],
        one_sym_per_frame=arguments.get("one_sym_per_frame", False),
    )
