"""A simple loss in tiles beside the dense one, for some utterances of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panda_icefall.losses.lattices.full import loss_of_arcs, symbol_arcs
from panda_icefall.losses.simple_tiled import Projection, tiled_rnnt_loss_smoothed
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.losses.smoothed import smoothed_arcs
from panda_icefall.losses.utterances import spec_of_utterances
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.routing.computed_losses import ComputedSimpleLoss
from panda_icefall.routing.verification import DENSE, Deviation, rel_l2, scaled

__all__ = ["deviations_of_simple"]

# Of am and lm in float64: themselves, their exponentials, and temporaries of these.
_BYTES_PER_LOGIT = 4 * 8


def deviations_of_simple(
    found: ComputedSimpleLoss, utterances: Sequence[int], scratch_bytes: int
) -> list[Deviation]:
    """The distances of losses and occupations, by utterance, from the dense ones in float64.

    Both are computed here, from what the loss read. None where the dense loss is not finite, or
    where its am and lm do not fit the scratch even for one utterance.

    Args:
      found: what routing told.
      utterances: to compare, as many of the first as fit; ascending, each once.
      scratch_bytes: what dense am and lm, with their temporaries, may take.
    """
    rows = found.am.rows + found.lm.rows
    fit = scratch_bytes // (_BYTES_PER_LOGIT * rows * found.am.classes)
    utterances = tuple(utterances[:fit])
    if not utterances:
        return []
    device = found.loss.device
    chosen = torch.tensor([*utterances], device=device)
    spec, scales = spec_of_utterances(found.spec, chosen), found.scales
    with no_autocast(device), torch.no_grad():
        am, lm = (source.remake(_parts(source, chosen)) for source in (found.am, found.lm))
        px, py = smoothed_arcs(_logits(lm), _logits(am), spec, scales)
        px = symbol_arcs(px, py, spec)
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


def _logits(source: LogitSource) -> Tensor:
    """``[n, R, C]`` in float64; operands are rounded as autocast does it."""
    if not isinstance(source, Projection):
        (values,) = source.parts
        assert values is not None
        return values.double()
    input, weight, bias = (None if x is None else source.operand(x) for x in source.parts)
    assert input is not None
    assert weight is not None
    return torch.nn.functional.linear(input, weight, bias).double()


def _flat(occupations: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in occupations])
