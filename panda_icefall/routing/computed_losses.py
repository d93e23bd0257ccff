"""Routed losses that were computed: what is needed to look into them afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.freed import is_freed
from panda_icefall.losses.heads import Head, HeadLogProbs
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.selected import (
    LatticeLoss,
    loss_of_log_probs,
    selected_transducer_loss,
)
from panda_icefall.losses.simple_tiled import tiled_rnnt_loss_smoothed
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.losses.sites import LatticeSites, SiteLogProbs
from panda_icefall.losses.smoothed import Scales
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.normalizer import RowLogits, RowProgram, RowTable

__all__ = [
    "AM",
    "LM",
    "LOGITS",
    "OTHER",
    "Computed",
    "ComputedByCalls",
    "ComputedLoss",
    "ComputedSimpleLoss",
    "detached",
]

# What a joiner reads at its sites, or logits that exist.
AM, LM, OTHER, LOGITS = "am", "lm", "another tensor of the joiner", "logits"


@dataclass(frozen=True, eq=False)
class ComputedLoss:
    """A pruned or full-lattice loss; its tensors are detached, and those that the graph holds.

    Attributes:
      name: of the kind of loss, in words.
      loss: what it returned.
      logits: what computes the logits of its sites.
      tables: ``AM``, ``LM``, ``OTHER`` or ``LOGITS`` for each table of the rows.
      sites, head, options, lattice_loss, clamp: as in ``selected_transducer_loss``.
      log_probs: what it read at its sites; None: nobody asked.
    """

    name: str
    loss: Tensor
    logits: RowLogits
    tables: tuple[str, ...]
    sites: LatticeSites
    head: Head
    options: LossOptions
    lattice_loss: LatticeLoss | None = None
    clamp: float | None = None
    log_probs: SiteLogProbs | None = None

    @property
    def spec(self) -> LatticeSpec:
        return self.sites.spec

    @property
    def frames(self) -> int:
        """T."""
        return self.sites.T

    @property
    def is_whole(self) -> bool:
        """Whether what it read can be read again: FSDP2 frees it, other ranks may have a part."""
        rows = self.logits.rows
        given = (*(table.values for table in rows.tables), *rows.parameters)
        return _are_whole((*given, self.logits.weight, self.logits.bias))

    def by_utterance(self, observer: Callable[[SiteLogProbs], None] | None = None) -> Tensor:
        """The losses ``[B]``, computed once more, without gradients; nothing is counted."""
        spec = dataclasses.replace(self.spec, reduction="none")
        with torch.no_grad():
            return selected_transducer_loss(
                self.logits,
                dataclasses.replace(self.sites, spec=spec),  # type: ignore[type-var]
                self.head,
                self.options,
                lattice_loss=self.lattice_loss,
                clamp=self.clamp,
                observer=observer,
            )


@dataclass(frozen=True, eq=False)
class ComputedSimpleLoss:
    """A simple or smoothed loss in tiles; its tensors are detached, and those of the graph.

    Attributes:
      name, loss: as of ``ComputedLoss``.
      am, lm: as in ``tiled_rnnt_loss_smoothed``.
      spec, scales, options: likewise.
    """

    name: str
    loss: Tensor
    am: LogitSource
    lm: LogitSource
    spec: LatticeSpec
    scales: Scales
    options: LossOptions

    @property
    def frames(self) -> int:
        """T."""
        return self.am.rows

    @property
    def is_whole(self) -> bool:
        """As of ``ComputedLoss``."""
        return _are_whole((*self.am.parts, *self.lm.parts))

    def by_utterance(self) -> Tensor:
        """As of ``ComputedLoss``."""
        spec = dataclasses.replace(self.spec, reduction="none")
        with torch.no_grad():
            losses = tiled_rnnt_loss_smoothed(self.lm, self.am, spec, self.scales, self.options)
        assert isinstance(losses, Tensor)
        return losses


@dataclass(frozen=True, eq=False)
class ComputedByCalls:
    """A loss whose joiner was called for some sites at a time; its tensors are detached.

    Attributes:
      name, loss, sites, lattice_loss, options: as of ``ComputedLoss``.
      found: log-probs of the sites.
      am: ``[B, T, D]``.
      lm: ``[B, S + 1, E]``.
    """

    name: str
    loss: Tensor
    found: HeadLogProbs
    am: Tensor
    lm: Tensor
    sites: LatticeSites
    lattice_loss: LatticeLoss | None
    options: LossOptions

    @property
    def spec(self) -> LatticeSpec:
        return self.sites.spec

    @property
    def frames(self) -> int:
        """T."""
        return self.sites.T

    @property
    def is_whole(self) -> bool:
        """As of ``ComputedLoss``."""
        return _are_whole((self.am, self.lm))

    @property
    def log_probs(self) -> SiteLogProbs:
        """As of ``ComputedLoss``."""
        return self.sites.observed(self.found.target, self.found.blank, self.found.log_z)

    def by_utterance(self, observer: Callable[[SiteLogProbs], None]) -> Tensor:
        """As of ``ComputedLoss``."""
        found = self.found
        observer(self.log_probs)
        spec = dataclasses.replace(self.spec, reduction="none")
        sites = dataclasses.replace(self.sites, spec=spec)  # type: ignore[type-var]
        return loss_of_log_probs(found, sites, self.lattice_loss, self.options)


Computed = ComputedLoss | ComputedSimpleLoss | ComputedByCalls


def _are_whole(tensors: Iterable[Tensor | None]) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    return not any(hasattr(t, "to_local") or is_freed(t, t.shape) for t in given)


def detached(logits: RowLogits) -> RowLogits:
    """The same logits on tensors that hold no graph."""
    program, weight, bias = logits.rows, logits.weight, logits.bias
    rows = RowProgram(
        [RowTable(table.values.detach(), table.index) for table in program.tables],
        [parameter.detach() for parameter in program.parameters],
        program.steps,
    )
    return RowLogits(
        rows,
        None if weight is None else weight.detach(),
        None if bias is None else bias.detach(),
        logits.head_dtype,
    )
