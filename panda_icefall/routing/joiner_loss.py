"""The loss of a joiner: recorded, called for some sites at a time, or given the whole lattice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from panda_icefall.cuda_graphs import check_not_captured
from panda_icefall.losses.heads import Head, HeadLogProbs
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.selected import LatticeLoss, loss_of_log_probs
from panda_icefall.losses.sites import FullSites, LatticeSites
from panda_icefall.losses.variant import Variant
from panda_icefall.normalizer import RowLogits, RowProgram, RowTable
from panda_icefall.normalizer.retry import is_out_of_memory
from panda_icefall.routing import patch
from panda_icefall.routing.after_losses import recorded_loss, tell
from panda_icefall.routing.computed_losses import ComputedByCalls
from panda_icefall.routing.hosts import Kind
from panda_icefall.routing.joiner_calls import Joiner, SiteRows, log_probs_by_calls
from panda_icefall.routing.joiner_probe import JoinerState
from panda_icefall.routing.joint_sites import GridSites
from panda_icefall.routing.observing import current_observer
from panda_icefall.routing.routed_loss import row_logits, why_not
from panda_icefall.routing.site_tensor import SiteTensor
from panda_icefall.routing.status import LossTotals
from panda_icefall.routing.torch_functions import name_of
from panda_icefall.routing.torch_swaps import recording_in_torch

__all__ = ["loss_of_joiner", "refuse"]


class _NotRecordedError(Exception):
    """An operation of the joiner asks for a tensor of the whole lattice."""


def refuse(operation: str) -> None:
    """End the recording, where an operation of the joiner asks a stand-in for its tensor."""
    raise _NotRecordedError(operation)


def loss_of_joiner(
    joiner: Joiner,
    joints: tuple[Any, Any],
    rows: SiteRows,
    sites_of: Callable[[int], LatticeSites],
    variant: Variant,
    clamp: float,
    options: LossOptions,
) -> Tensor:
    """The loss of a joiner that is recorded, or called where it cannot be."""
    check_not_captured("a transducer loss of PANDA's")
    variant.check_clamp(clamp)
    is_clamped = clamp > 0
    head, lattice_loss = variant.chosen()
    counters, observer = patch.counters(), current_observer()
    bound = clamp if is_clamped else None
    state = JoinerState(joiner, rows.am.device)
    kind = Kind.FULL_LOSS if isinstance(rows.sites, GridSites) else Kind.PRUNED_LOSS
    logits = _recorded(joiner, joints)
    if isinstance(logits, str):
        state.restore()
        why_not_called = rows.why_not_by_calls(joiner)
        if why_not_called is not None:
            reason = f"{logits}: {why_not_called}"
            try:
                whole = rows.whole(joiner)
            except (MemoryError, RuntimeError) as error:
                if is_out_of_memory(error):
                    # Why so much was asked for.
                    counters.count_whole_lattice(reason)
                raise
            sites = sites_of(whole.shape[-1])
            counters.count_whole_lattice(reason)
            return _loss_of_logits(kind, whole, sites, head, lattice_loss, bound, options)
        facts = rows.facts(joiner)
        sites = sites_of(facts.classes)
        counters.count_calls(logits)
        found = log_probs_by_calls(
            joiner, rows.at(_position(sites)), sites, head, facts, options, bound
        )
        if observer is not None:
            observer(sites.observed(found.target, found.blank, found.log_z))
        loss = loss_of_log_probs(found, sites, lattice_loss, options)
        others = None if found.others is None else found.others.detach()
        known = HeadLogProbs(
            found.target.detach(), found.blank.detach(), found.log_z.detach(), others
        )
        am, lm = rows.am.detach(), rows.lm.detach()
        computed = ComputedByCalls(
            kind.value, loss.detach(), known, am, lm, sites, lattice_loss, options
        )
        tell(computed, loss)
        return loss
    sites = sites_of(logits.width)
    is_shift_free = not (is_clamped or variant.use_hat_loss)
    recorded, position = logits, _position(sites)
    loss = recorded_loss(
        kind.value, recorded,
        lambda: row_logits(recorded, is_shift_free=is_shift_free, position=position),
        sites, head, options,
        lattice_loss=lattice_loss, clamp=bound, counters=counters.tiles, observer=observer,
    )  # fmt: skip
    counters.add(LossTotals(losses_routed=1))
    return loss


def _loss_of_logits(
    kind: Kind,
    logits: Tensor,
    sites: LatticeSites,
    head: Head,
    lattice_loss: LatticeLoss | None,
    clamp: float | None,
    options: LossOptions,
) -> Tensor:
    """The loss of a lattice's logits that exist."""
    table = RowTable(logits.reshape(-1, logits.shape[-1]), _position(sites))
    return recorded_loss(
        kind.value, None, lambda: RowLogits(RowProgram((table,))), sites, head, options,
        lattice_loss=lattice_loss, clamp=clamp, counters=patch.counters().tiles,
        observer=current_observer(),
    )  # fmt: skip


def _recorded(joiner: Joiner, joints: tuple[Any, Any]) -> SiteTensor | str:
    """The logits that a joiner makes of stand-ins; a text: why they cannot be recorded."""
    try:
        with recording_in_torch():
            logits = joiner(*joints)
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except _NotRecordedError as error:
        return str(error)
    except Exception as error:  # said again by the calls, if it is the joiner's own
        name = f"{name_of(joiner)}, which raised {type(error).__name__}"
        logging.info("panda: %s: %s", name, error)
        return name
    if not isinstance(logits, SiteTensor):
        return f"{name_of(joiner)}, which gave {type(logits).__name__}"
    return why_not(logits) or logits


def _position(sites: LatticeSites) -> Tensor | None:
    """Which of a joint's sites the loss has; None: all of them."""
    return sites.position if isinstance(sites, FullSites) else None
