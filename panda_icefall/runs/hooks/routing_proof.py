"""The proof that a run which asked for PANDA really trains with it."""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from panda_icefall import routing
from panda_icefall.normalizer import auto_workspace_bytes
from panda_icefall.normalizer.workspace import MIB
from panda_icefall.routing import LossTotals
from panda_icefall.runs.call_watch import (
    LossCallWatch,
    explain_ctc_not_routed,
    explain_not_routed,
    is_ctc_alone,
)
from panda_icefall.runs.errors import NotRoutedError
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.recipe_calls import Epoch, LossCall

__all__ = ["RoutingProof"]

# Times the workspace that would be chosen for the device.
MUCH = 4


class RoutingProof(Hook):
    """Stops a run whose first training batch ended without a routed loss.

    Until the proof is given, the loss functions that the recipe calls are counted, for a message
    that names what was called instead; afterwards nothing is watched.

    Args:
      workspace_mib: The scratch of a tile that was asked for; one with which nothing is tiled any
        more is warned of.
      names: What the model's projections to classes are called; ``None``: as in icefall.
      asks_ctc: Whether CTC losses were asked for too.
    """

    def __init__(
        self,
        workspace_mib: float | None = None,
        names: Mapping[str, str] | None = None,
        asks_ctc: bool = False,
    ) -> None:
        self._is_due = True
        self._workspace_mib = workspace_mib
        self._names = names
        self._asks_ctc = asks_ctc
        self._calls: Counter[str] = Counter()

    @contextlib.contextmanager
    def epoch(self, epoch: Epoch) -> Iterator[None]:
        """Before the first batch: warns of a workspace that is no bound on the device."""
        if self._is_due and self._workspace_mib is not None:
            memory_mib = _memory_bytes(epoch.device) / MIB
            if self._workspace_mib > memory_mib:
                self._warn_of_one_tile(f"is more than the {memory_mib:.0f} MiB of {epoch.device}")
        yield

    def _warn_of_one_tile(self, why: str) -> None:
        logging.warning(
            "panda: --panda-workspace-mib: got %g, which %s: the loss is not tiled, and the logits "
            "of all its sites exist at once; leave the option out, or give a smaller number",
            self._workspace_mib,
            why,
        )
        self._workspace_mib = None

    def around_loss(self, epoch: Epoch, compute: Callable[[], Any]) -> Any:
        """Count the loss functions that a training ``compute_loss`` calls."""
        if not self._is_due:
            return compute()
        with LossCallWatch() as watch:
            result = compute()
        self._calls += watch.calls
        return result

    def before_loss(self, epoch: Epoch, call: LossCall) -> None:
        """Many recipes validate after the first batch: it decides before that."""
        if epoch.steps and not call.is_training:
            self.after_batch(epoch)

    def after_batch(self, epoch: Epoch) -> None:
        """The first training batch decides.

        A simple loss that was not routed, though the model has the projections for it, is only
        warned of: it is the pruned loss that has the ``[B, T, s_range, C]`` tensors.

        Raises:
          NotRoutedError: No loss was routed, or no CTC loss where that was asked for.
        """
        if not self._is_due:
            return
        ledger = epoch.ledger
        ledger.advance()
        if ledger.total.losses_routed == 0:
            if not is_ctc_alone(ledger.total, self._calls):
                raise NotRoutedError(explain_not_routed(ledger.total, self._calls))
            logging.warning("panda: only CTC losses are routed; no transducer loss was seen")
        if self._asks_ctc and ledger.total.ctc_losses_routed == 0:
            heads = routing.find_ctc_heads(epoch.model, self._names)
            raise NotRoutedError(explain_ctc_not_routed(ledger.total, heads))
        self._is_due = False
        # A small loss is one tile with any workspace.
        asked = (self._workspace_mib or 0) * MIB
        is_one_tile = ledger.total.tiles_forward <= ledger.total.losses_routed
        if is_one_tile and asked > MUCH * auto_workspace_bytes(epoch.device):
            self._warn_of_one_tile("holds the whole loss of the first batch in one tile")
        projections = routing.find_projections(epoch.model, self._names)
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
    found = sorted(op for op in counted.materialised if op.partition(":")[0] in names)
    operations = ", ".join(found)
    why = f" ({operations})" if operations else ""
    return f"every simple loss of the first training batch was given tensors{why}"
