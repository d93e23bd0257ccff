"""Some utterances of a batch as a lattice of their own."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from panda_icefall.losses.sites import FullSites, LatticeSites, RetainedSites, SiteLogProbs
from panda_icefall.losses.spec import LatticeSpec

__all__ = ["at_sites", "lattice_of_utterances", "spec_of_utterances"]


def spec_of_utterances(spec: LatticeSpec, chosen: Tensor) -> LatticeSpec:
    """The lattice of the utterances ``chosen``, int64 ``[n]``; its losses are not reduced."""
    return dataclasses.replace(
        spec,
        symbols=spec.symbols[chosen],
        ranges=None if spec.ranges is None else spec.ranges[chosen],
        boundary=None if spec.boundary is None else spec.boundary[chosen],
        reduction="none",
    )


def lattice_of_utterances(
    sites: LatticeSites, chosen: Tensor, num_classes: int
) -> tuple[LatticeSites, Tensor]:
    """The sites of the utterances ``chosen``, and which of all N sites they are.

    Args:
      sites: of the batch, checked for ``num_classes``.
      chosen: int64 ``[n]``, ascending.

    Returns:
      The sites of a lattice of n utterances, and int64 ``[M]``.
    """
    spec = spec_of_utterances(sites.spec, chosen)
    if isinstance(sites, RetainedSites):
        of_one = sites.spec.band.shape[1] * sites.spec.band.shape[2]
        inside = torch.arange(of_one, device=chosen.device)
        return RetainedSites.of(spec, num_classes), (chosen[:, None] * of_one + inside).flatten()
    assert isinstance(sites, FullSites)
    utterance = torch.div(sites.position, sites.T * sites.states, rounding_mode="floor")
    index = (utterance[:, None] == chosen).any(dim=1).nonzero().squeeze(1)
    return FullSites.of(spec, num_classes, sites.T), index


def at_sites(sites: LatticeSites, seen: SiteLogProbs) -> tuple[Tensor, Tensor, Tensor]:
    """Target, blank and log_z ``[N]`` of what observers of these sites were told."""
    found = (seen.target, seen.blank, seen.log_z)
    if isinstance(sites, FullSites):
        return tuple(x.flatten()[sites.position] for x in found)  # type: ignore[return-value]
    return tuple(x.flatten() for x in found)  # type: ignore[return-value]
