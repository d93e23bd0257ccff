"""The proof that a run which asked for PANDA really trains with it."""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Optional

import torch
from torch import nn

from panda_icefall import routing
from panda_icefall.normalizer import auto_workspace_bytes
from panda_icefall.normalizer.workspace import MIB
from panda_icefall.routing import LossTotals
from panda_icefall.runs.call_watch import LossCallWatch, explain_not_routed
from panda_icefall.runs.counters import CounterLedger
from panda_icefall.runs.errors import NotRoutedError

__all__ = ["RoutingProof"]

# Times the workspace that would be chosen for the device.
MUCH = 4


class RoutingProof:
    """Stops a run whose first training batch ended without a routed loss.

    Until the proof is given, the loss functions that the recipe calls are counted, for a message
    that names what was called instead; afterwards nothing is watched.

    Args:
      is_asked: Whether the run asked for PANDA; without that there is nothing to prove.
      workspace_mib: The scratch of a tile that was asked for; one with which nothing is tiled any
        more is warned of.
      names: What the simple loss's projections are called; ``None``: as in icefall.
    """

    def __init__(
        self,
        is_asked: bool,
        workspace_mib: Optional[float] = None,
        names: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._is_due = is_asked
        self._workspace_mib = workspace_mib if is_asked else None
        self._names = names
        self._device = torch.device("cpu")
        self._calls: Counter[str] = Counter()

    def begin(self, device: torch.device) -> None:
        """Called before the first batch: warns of a workspace that is no bound on ``device``."""
        self._device = device
        if self._workspace_mib is None:
            return
        memory_mib = _memory_bytes(device) / MIB
        if self._workspace_mib > memory_mib:
            self._warn_of_one_tile(f"is more than the {memory_mib:.0f} MiB of {device}")

    def _warn_of_one_tile(self, why: str) -> None:
        logging.warning(
            "panda: --panda-workspace-mib: got %g, which %s: the loss is not tiled, and the logits "
            "of all its sites exist at once; leave the option out, or give a smaller number",
            self._workspace_mib,
            why,
        )
        self._workspace_mib = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count the loss functions that the block, one training ``compute_loss``, calls."""
        if not self._is_due:
            yield
            return
        with LossCallWatch() as watch:
            yield
        self._calls += watch.calls

    def verify(self, ledger: CounterLedger, model: nn.Module) -> None:
        """Called when a training batch is through; the first call decides.

        A simple loss that was not routed, though the model has the projections for it, is only
        warned of: it is the pruned loss that has the ``[B, T, s_range, C]`` tensors.

        Args:
          ledger: What routing counted for the recipe so far; brought up to date here.
          model: The model that trains.

        Raises:
          NotRoutedError: No loss was routed.
        """
        if not self._is_due:
            return
        ledger.advance()
        if ledger.total.losses_routed == 0:
            raise NotRoutedError(explain_not_routed(ledger.total, self._calls))
        self._is_due = False
        # A small loss is one tile with any workspace.
        asked = (self._workspace_mib or 0) * MIB
        is_one_tile = ledger.total.tiles_forward <= ledger.total.losses_routed
        if is_one_tile and asked > MUCH * auto_workspace_bytes(self._device):
            self._warn_of_one_tile("held the whole of the first batch's loss")
        projections = routing.find_projections(model, self._names)
        if projections and ledger.total.simple_losses_deferred == 0:
            logging.warning(
                "panda: the model has %s, but %s: the simple loss needs their [B, T, C] tensors",
                " and ".join(projections),
                _what_happened(ledger.total, list(projections)),
            )


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _what_happened(counted: LossTotals, projections: list[str]) -> str:
    if not counted.simple_losses_routed + counted.simple_losses_dense:
        return "no simple loss was seen in the first training batch"
    names = {path.rpartition(".")[2] for path in projections}
    operations = ", ".join(op for op in counted.materialised if op.partition(":")[0] in names)
    why = f" ({operations})" if operations else ""
    return f"every simple loss of the first training batch was given tensors{why}"
