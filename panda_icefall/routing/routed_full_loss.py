"""What the hosts' full-lattice losses are replaced by: they take a recorded joiner."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.losses.heads import PlainHead, head_of
from panda_icefall.losses.lengths import spec_of_lengths
from panda_icefall.losses.selected import selected_transducer_loss
from panda_icefall.losses.sites import FullSites
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.routing.hosts import as_k2_arguments
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
        state.counters.add(LossTotals(losses_dense=1))
        return original(*given.args, **given.kwargs)

    return full_loss


def _why_not(logits: SiteTensor, arguments: Mapping[str, Any]) -> str | None:
    """The reason these recorded logits cannot be routed, or None."""
    if arguments.get("return_grad", False):
        return "return_grad"
    if not arguments.get("fused_log_softmax", True):
        return "fused_log_softmax=False"
    if arguments.get("from_log_softmax", False):
        return "from_log_softmax=True"
    if not isinstance(logits.sites, (GridSites, PackedSites)):
        return "logits of a pruned lattice"
    return why_not(logits)


def compute(logits: SiteTensor, arguments: Mapping[str, Any], state: RoutingState) -> Tensor:
    assert state.options is not None
    clamp = arguments.get("clamp", -1)
    head = head_of(bool(arguments.get("use_hat_loss", False)))
    is_shift_free = clamp <= 0 and isinstance(head, PlainHead)
    is_packed = isinstance(logits.sites, PackedSites)
    if isinstance(logits.sites, PackedSites):
        _check_lengths(logits.sites, arguments)
    sites = full_sites(arguments)
    with torch.set_grad_enabled(torch.is_grad_enabled() and logits.grad_enabled):
        loss = selected_transducer_loss(
            row_logits(
                logits, is_shift_free=is_shift_free, position=None if is_packed else sites.position
            ),
            sites,
            head,
            state.options.tiles,
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
    """
    logits = arguments["logits"]
    classes, is_packed = logits.shape[-1], len(logits.shape) == 2
    if "symbols" in arguments:  # k2
        return FullSites.of(LatticeSpec.of(as_k2_arguments(arguments)), classes, logits.shape[1])
    blank, frames = arguments["blank"], arguments["logit_lengths"]
    states = arguments["target_lengths"]
    targets = arguments["targets"].to(logits.device)
    is_modified = arguments.get("one_sym_per_frame", False)
    T = int(frames.max()) if is_packed else logits.shape[1]
    spec = spec_of_lengths(
        targets, frames, states,
        T=T, blank=classes + blank if blank < 0 else blank, classes=classes, forbidden=range(0),
        is_final_blank=is_modified, rnnt_type="modified" if is_modified else "regular",
        reduction=arguments["reduction"],
    )  # fmt: skip
    return FullSites.of(spec, classes, T)
