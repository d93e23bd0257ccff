"""Hosts' full-lattice losses by a float64 oracle, where the host is missing or rounds too much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from lattice_oracle import LossKind, transducer_costs
from torch import Tensor

from recipe_matrix.adaptations import module
from recipe_matrix.isolation import stand_in_modules
from recipe_matrix.row import Adaptation


def packed_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    reduction: str = "mean",
    one_sym_per_frame: bool = False,
    from_log_softmax: bool = False,
) -> Tensor:
    """``optimized_transducer.transducer_loss``, of logits ``[sum_all_TU, C]``."""
    assert not from_log_softmax
    kind = LossKind(blank=blank, rnnt_type="one_sym_per_frame" if one_sym_per_frame else "regular")
    costs, first = [], 0
    for b, (T, U) in enumerate(zip(logit_lengths.tolist(), target_lengths.tolist())):
        rows = logits[first : first + T * (U + 1)]
        first += len(rows)
        lengths = (x[b : b + 1] for x in (targets, logit_lengths, target_lengths))
        costs.append(transducer_costs(rows.view(1, T, U + 1, -1), *lengths, kind))
    assert first == len(logits)
    return getattr(torch.cat(costs), reduction)().to(logits.dtype)


def padded_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    reduction: str,
) -> Tensor:
    """``torchaudio.functional.rnnt_loss``, of logits ``[N, T, U, C]``."""
    kind = LossKind(blank=blank)
    costs = transducer_costs(logits, targets, logit_lengths, target_lengths, kind)
    return getattr(costs, reduction)().to(logits.dtype)


@contextmanager
def _in_place_of_torchaudios() -> Iterator[None]:
    from torchaudio import functional

    with mock.patch.object(functional, "rnnt_loss", padded_loss):
        yield


_PACKED = {"optimized_transducer": module("optimized_transducer", transducer_loss=packed_loss)}
# It has no wheel.
OPTIMIZED_TRANSDUCER = Adaptation(
    note="dense: float64 oracle", around_dense=partial(stand_in_modules, _PACKED)
)
# Its costs are sums of float32 numbers of the size of the logits.
TORCHAUDIO = Adaptation(note="reference: float64 oracle", around_reference=_in_place_of_torchaudios)
