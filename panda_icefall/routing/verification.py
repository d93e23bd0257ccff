"""A routed loss beside its dense expression, for some utterances of a batch.

Dense: the logits of the recorded rows, by ``F.linear``; log-probs by ``torch.logsumexp`` and
``gather`` in float64; the recursion of ``lattice.recursion`` in float64; gradients by autograd.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.lattice.recursion import NEG_INF
from panda_icefall.losses.heads import HeadLogProbs
from panda_icefall.losses.lattices.full import loss_of_arcs, symbol_arcs
from panda_icefall.losses.lattices.pruned import pruned_px_py
from panda_icefall.losses.options import LossOptions
from panda_icefall.losses.selected import loss_of_log_probs
from panda_icefall.losses.sites import FullSites, LatticeSites, inside_boundary
from panda_icefall.losses.utterances import at_sites, lattice_of_utterances
from panda_icefall.normalizer import ClassRanges, RowLogits, RowProgram
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.normalizer.op import Selected, select
from panda_icefall.routing.computed_losses import ComputedLoss

__all__ = ["CLASS_TILE", "DENSE", "Deviation", "deviations_of", "rel_l2", "scaled"]

# The recursion of the dense losses, whatever the routed ones run.
DENSE = LossOptions(engine="torch", recursion="exact")

# Of a tile of logits: in the dtype of the sums and in float64, and what autograd keeps of them.
_BYTES_PER_LOGIT = 4 + 4 * 8
CLASS_TILE = 8192  # of a weight, whose copy in the dtype of the sums exists at a time


@dataclass(frozen=True)
class Deviation:
    """How far one quantity is from the dense one, over the chosen utterances.

    Attributes:
      loss: name of the kind of loss.
      quantity: ``log-probs`` and ``log_z``: the largest difference over one plus the dense absolute
        value. ``loss``: the same of an utterance's; ``batch loss``: of the value that was returned,
        against that of its own log-probs. ``adjoints`` of the selected log-probs, and ``gradient``
        of the rows that the last layer reads: rel-L2.
      distance: 0 where both are equal; NaN where the routed one is.
      utterances: which were compared.
    """

    loss: str
    quantity: str
    distance: float
    utterances: tuple[int, ...]


def deviations_of(
    found: ComputedLoss, utterances: Sequence[int], scratch_bytes: int
) -> list[Deviation]:
    """The distances of a routed loss from the dense one; none where the dense one is not finite.

    Reads device values. Draws no random numbers and leaves no gradient. What is computed again has
    all of its sites in backward (``adjoint_tolerance`` 0). The gradients of W and b, which take as
    much memory as they do, are not compared.

    Args:
      found: told with its log-probs.
      utterances: to compare; ascending, each once.
      scratch_bytes: what a tile of dense logits may take.
    """
    device = found.loss.device
    with no_autocast(device), torch.no_grad():
        part = _Part.of(found, torch.tensor([*utterances], device=device), scratch_bytes)
        if part.rows.sites == 0:
            return []
        dense = part.dense_log_probs()
        dense_loss, dense_adjoints = part.loss(dense, _dense_loss)
        if not all(bool(x.isfinite().all()) for x in (dense.log_z, dense_loss)):
            return []  # the report on losses that are not finite says what there is to say
        routed = part.routed_log_probs()
        routed_loss, routed_adjoints = part.loss(routed, loss_of_log_probs)
        distances = {
            "log-probs": scaled(_flat(routed)[:, :2], _flat(dense)[:, :2]),
            "log_z": scaled(routed.log_z, dense.log_z),
            "loss": scaled(routed_loss, dense_loss),
            "adjoints": rel_l2(routed_adjoints, dense_adjoints),
        }
        if found.clamp is None:
            distances["gradient"] = rel_l2(*part.gradients(dense_adjoints))
        if found.lattice_loss is None and found.clamp is None:
            assert found.log_probs is not None
            of_batch = HeadLogProbs(*at_sites(found.sites, found.log_probs))
            again = loss_of_log_probs(of_batch, found.sites, None, found.options)
            distances["batch loss"] = scaled(found.loss, again)
    return [Deviation(found.name, *item, tuple(utterances)) for item in distances.items()]


@dataclass(frozen=True, eq=False)
class _Part:
    """The chosen utterances of a loss, n of them.

    Attributes:
      whole: the loss.
      sites: of the utterances, M of them.
      read: int64 ``[m]``, those of the M that the loss reads.
      of_whole: int64 ``[m]``, the places of these among all sites of the batch.
      targets: int64 ``[m]``, their next symbols.
      rows: what computes what the last layer reads there, ``[m, H]``.
      scratch_bytes: as of ``deviations_of``.
    """

    whole: ComputedLoss
    sites: LatticeSites
    read: Tensor
    of_whole: Tensor
    targets: Tensor
    rows: RowProgram
    scratch_bytes: int

    @classmethod
    def of(cls, found: ComputedLoss, chosen: Tensor, scratch_bytes: int) -> _Part:
        tokens = found.head.token_classes(found.logits.classes)
        sites, index = lattice_of_utterances(found.sites, chosen, tokens)
        read = torch.arange(len(index), device=index.device)
        if found.spec.ranges is not None:
            live = inside_boundary(sites.spec.band, sites.spec.boundary)
            read = live.flatten().nonzero().squeeze(1)
        rows = found.logits.rows.at(index[read])
        return cls(found, sites, read, index[read], sites.next_symbols()[read], rows, scratch_bytes)

    def dense_log_probs(self) -> HeadLogProbs:
        """Float64 ``[m]``."""
        parts = [
            self.whole.head.of_logits(
                self._logits(self._hidden(at)).double(), self.targets[at], self._blank
            )
            for at in self._tiles()
        ]
        columns = zip(*((part.target, part.blank, part.log_z) for part in parts))
        target, blank, log_z = map(torch.cat, columns)
        others = [part.others for part in parts if part.others is not None]
        return HeadLogProbs(target, blank, log_z, torch.cat(others) if others else None)

    def routed_log_probs(self) -> HeadLogProbs:
        """``[m]``, as the loss had them; what it does not tell is computed again."""
        assert self.whole.log_probs is not None
        had = at_sites(self.whole.sites, self.whole.log_probs)
        target, blank, log_z = (x[self.of_whole] for x in had)
        again = self._selected(dataclasses.replace(self.whole.logits, rows=self.rows))
        return HeadLogProbs(target, blank, log_z, again.others)

    def loss(self, found: HeadLogProbs, loss_of: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """The losses ``[n]`` of log-probs ``[m]``, and their adjoints ``[m, K]``."""
        with torch.enable_grad():
            leaf = _flat(found).detach().requires_grad_()
            everywhere = leaf.new_zeros(self.sites_in_all, leaf.shape[1])
            placed = everywhere.index_copy(0, self.read, leaf)
            others = None if found.others is None else placed[:, 2:]
            given = HeadLogProbs(placed[:, 0], placed[:, 1], placed[:, 0], others)
            losses = loss_of(given, self.sites, self.whole.lattice_loss, self.whole.options)
            (adjoints,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), adjoints

    def gradients(self, adjoints: Tensor) -> tuple[Tensor, Tensor]:
        """Of the rows ``[m, H]``: by the tiles, and dense."""
        hidden = torch.cat([self._hidden(at) for at in self._tiles()])
        dense = torch.empty_like(hidden, dtype=torch.float64)
        for at in self._tiles():
            with torch.enable_grad():
                leaf = hidden[at].requires_grad_()
                logits = self._logits(leaf).double()
                found = self.whole.head.of_logits(logits, self.targets[at], self._blank)
                total = (_flat(found) * adjoints[at]).sum()
                (dense[at],) = torch.autograd.grad(total, leaf)
        with torch.enable_grad():
            leaf = hidden.requires_grad_()
            rows = RowProgram.of(leaf)
            selected = self._selected(dataclasses.replace(self.whole.logits, rows=rows))
            (routed,) = torch.autograd.grad((_flat(selected) * adjoints).sum(), leaf)
        return routed, dense

    @property
    def sites_in_all(self) -> int:
        """M."""
        spec = self.sites.spec
        return spec.band.numel() if spec.ranges is not None else self.read.shape[0]

    @property
    def _blank(self) -> int:
        return self.sites.spec.termination_symbol

    def _tiles(self) -> Iterator[slice]:
        """Of the m sites."""
        rows = max(1, self.scratch_bytes // (_BYTES_PER_LOGIT * self.whole.logits.classes))
        for low in range(0, self.rows.sites, rows):
            yield slice(low, min(self.rows.sites, low + rows))

    def _operand(self, tensor: Tensor) -> Tensor:
        """Rounded as autocast rounds operands of a linear layer, in the dtype of the sums."""
        cast = self.whole.logits.head_dtype
        return (tensor if cast is None else tensor.to(cast)).to(self.whole.logits.dtype)

    def _hidden(self, at: slice) -> Tensor:
        """The rows of some sites, as they meet the weight."""
        rows = [
            table.values[at] if table.index is None else table.values[table.index[at]]
            for table in self.rows.tables
        ]
        return self._operand(self.rows.replay(rows, self.rows.parameters))

    def _logits(self, hidden: Tensor) -> Tensor:
        """``[rows, C]``, in the dtype of the sums."""
        logits = self.whole.logits
        if logits.weight is None:
            return hidden
        tiles = []
        for low in range(0, logits.classes, CLASS_TILE):
            classes = slice(low, low + CLASS_TILE)
            bias = None if logits.bias is None else logits.bias[classes].to(logits.dtype)
            tiles.append(F.linear(hidden, self._operand(logits.weight[classes]), bias))
        return torch.cat(tiles, dim=1)

    def _selected(self, logits: RowLogits) -> HeadLogProbs:
        """What the tiles find at the m sites."""
        options = dataclasses.replace(self.whole.options, adjoint_tolerance=0.0)

        def in_tiles(
            logits: RowLogits,
            ids: Tensor,
            mask: Tensor | None = None,
            read: ClassRanges | None = None,
        ) -> Selected:
            return select(logits, ids, mask, live=None, options=options, counters=None, read=read)

        return self.whole.head.of_rows(logits, self.targets, self._blank, in_tiles)


def _dense_loss(
    found: HeadLogProbs,
    sites: LatticeSites,
    lattice_loss: Callable[..., Tensor] | None,
    options: LossOptions,
) -> Tensor:
    """The losses ``[n]`` by the recursion over the full lattice in torch, whatever the options."""
    if lattice_loss is not None:  # of durations: it is in torch everywhere
        return lattice_loss(found, sites)
    spec, S = sites.spec, sites.spec.symbols.shape[1]
    target, blank = spec.emitted(found.target), found.blank
    if isinstance(sites, FullSites):
        px, py = (sites.spread(x, NEG_INF).transpose(1, 2) for x in (target, blank))
        px = symbol_arcs(px[:, :-1], py, spec)
    else:
        target, blank = (x.view(spec.band.shape) for x in (target, blank))
        px, py = pruned_px_py(target, blank, spec.band, S, spec.boundary, spec.rnnt_type)
    return loss_of_arcs(px, py, spec, tiles=DENSE, is_checked=True)


def _flat(found: HeadLogProbs) -> Tensor:
    """Target, blank and what else a head has, ``[m, K]``."""
    columns = torch.stack((found.target, found.blank), dim=1)
    return columns if found.others is None else torch.cat((columns, found.others), dim=1)


def scaled(ours: Tensor, dense: Tensor) -> float:
    """The largest difference over one plus the dense absolute value."""
    return float(((ours.double() - dense).abs() / (1 + dense.abs())).max())


def rel_l2(ours: Tensor, dense: Tensor) -> float:
    """The norm of the difference over that of the dense one; over 1 where that is 0."""
    size = float(dense.norm()) or 1.0
    return float((ours.double() - dense).norm()) / size
