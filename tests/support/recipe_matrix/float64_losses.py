"""Hosts' full-lattice losses by a float64 oracle, where the host is missing or rounds too much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import host_losses

from recipe_matrix.adaptations import module
from recipe_matrix.isolation import stand_in_modules
from recipe_matrix.row import Adaptation


@contextmanager
def _in_place_of_torchaudios() -> Iterator[None]:
    from torchaudio import functional

    with mock.patch.object(functional, "rnnt_loss", host_losses.torchaudio_loss):
        yield


_PACKAGE = module("optimized_transducer", transducer_loss=host_losses.packed_loss)
# It has no wheel.
OPTIMIZED_TRANSDUCER = Adaptation(
    note="dense: float64 oracle",
    around_dense=partial(stand_in_modules, {_PACKAGE.__name__: _PACKAGE}),
)
# Its costs are sums of float32 numbers of the size of the logits.
TORCHAUDIO = Adaptation(note="reference: float64 oracle", around_reference=_in_place_of_torchaudios)
