"""A simple loss in tiles beside the dense one, for some utterances of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from panda_icefall.losses.lattices.full import loss_of_arcs, symbol_arcs
from panda_icefall.losses.simple_tiled import Projection, tiled_rnnt_loss_smoothed
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.losses.smoothed import Scales, smoothed_arcs
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.losses.utterances import spec_of_utterances
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.routing.computed_losses import ComputedSimpleLoss
from panda_icefall.routing.verification import CLASS_TILE, DENSE, Deviation, rel_l2, scaled

__all__ = ["deviations_of_simple"]

# Of am and lm in float64: themselves, their exponentials, and temporaries of these.
_BYTES_PER_LOGIT = 4 * 8


def deviations_of_simple(
    found: ComputedSimpleLoss, utterances: Sequence[int], scratch_bytes: int
) -> list[Deviation]:
    """The distances of losses and occupations, by utterance, from the dense ones in float64.

    Both are computed here, from what the loss read: the dense log-probs for some states and frames
    at a time. None where the dense loss is not finite, or where not even one frame's fit.

    Args:
      found: what routing told.
      utterances: to compare, as many of the first as fit; ascending, each once.
      scratch_bytes: what dense am and lm, with their temporaries, may take.
    """
    fitting_rows = scratch_bytes // (_BYTES_PER_LOGIT * found.am.classes)
    # The unigram of the am-only part averages over all states.
    fewest = found.lm.rows + 1 if found.scales.am_only else 3
    utterances = tuple(utterances[: fitting_rows // fewest])
    if not utterances:
        return []
    device = found.loss.device
    chosen = torch.tensor([*utterances], device=device)
    spec, scales = spec_of_utterances(found.spec, chosen), found.scales
    with no_autocast(device), torch.no_grad():
        am, lm = (source.remake(_parts(source, chosen)) for source in (found.am, found.lm))
        px, py = _dense_arcs(lm, am, spec, scales, fitting_rows // len(utterances))
        dense, dense_occupations = loss_of_arcs(px, py, spec, True, tiles=DENSE, is_checked=True)
        if not bool(dense.isfinite().all()):
            return []
        ours, occupations = tiled_rnnt_loss_smoothed(
            lm, am, spec, scales, found.options, return_grad=True
        )
    distances = {
        "loss": scaled(ours, dense),
        "occupations": rel_l2(*(_flat(x) for x in (occupations, dense_occupations))),
    }
    return [Deviation(found.name, *item, utterances) for item in distances.items()]


def _parts(source: LogitSource, chosen: Tensor) -> Sequence[Tensor | None]:
    first, *others = source.parts
    assert first is not None
    return [first[chosen], *others]


def _dense_arcs(
    lm: LogitSource, am: LogitSource, spec: LatticeSpec, scales: Scales, rows: int
) -> tuple[Tensor, Tensor]:
    """Arcs as of ``get_rnnt_logprobs_smoothed``, in float64.

    Args:
      rows: of an utterance's am and lm, as many as may exist at a time.
    """
    # A block's states have symbol arcs of their own, for which it reads one state more.
    states = lm.rows if scales.am_only else min(lm.rows, max(1, rows // 2 - 1))
    frames = rows - min(states + 1, lm.rows)
    px, py = [], []
    for state in range(0, lm.rows, states):
        part = dataclasses.replace(spec, symbols=spec.symbols[:, state : state + states])
        of_lm = _logits(lm, slice(state, state + states + 1))
        blocks = [
            smoothed_arcs(of_lm, _logits(am, slice(frame, frame + frames)), part, scales)
            for frame in range(0, am.rows, frames)
        ]
        px.append(torch.cat([of_symbols for of_symbols, _ in blocks], dim=2))
        py.append(torch.cat([of_blank[:, :states] for _, of_blank in blocks], dim=2))
    blanks = torch.cat(py, dim=1)
    return symbol_arcs(torch.cat(px, dim=1), blanks, spec), blanks


def _logits(source: LogitSource, rows: slice) -> Tensor:
    """``[n, r, C]`` in float64, of some rows; operands are rounded as autocast does it."""
    if not isinstance(source, Projection):
        (values,) = source.parts
        assert values is not None
        return values[:, rows].double()
    input, weight, bias = source.parts
    assert input is not None
    assert weight is not None
    # Products of half values have to be in the dtype of the sums, or they would be rounded.
    hidden = source.widened(input[:, rows])
    logits = hidden.new_empty(*hidden.shape[:2], source.classes, dtype=torch.float64)
    for low in range(0, source.classes, CLASS_TILE):
        at = slice(low, low + CLASS_TILE)
        added = None if bias is None else source.widened(bias[at])
        logits[:, :, at] = torch.nn.functional.linear(hidden, source.widened(weight[at]), added)
    return logits


def _flat(occupations: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in occupations])
