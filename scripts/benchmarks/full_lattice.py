"""Losses of other projects that read the logits ``[B, T, S+1, C]`` of the full lattice."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

from torch import Tensor

from benchmarks.inputs import LossInputs, all_states
from panda_icefall.losses import dense
from panda_icefall.routing import patched_module


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def package_version(package: str) -> str | None:
    """Its version as installed, or None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def dense_loss(logits: Tensor, inputs: LossInputs) -> Tensor:
    """``k2.rnnt_loss``, or the project's dense twin of it where k2 is not installed."""
    k2 = patched_module()
    if hasattr(k2, "rnnt_loss"):
        return k2.rnnt_loss(
            logits=logits,
            symbols=inputs.symbols,
            termination_symbol=0,
            boundary=inputs.boundary,
            reduction="sum",
        )
    ranges = all_states(inputs)
    return dense.rnnt_loss_pruned(
        logits, inputs.symbols, ranges, 0, inputs.boundary, reduction="sum"
    )


def torchaudio_loss(logits: Tensor, inputs: LossInputs) -> Tensor:
    """``torchaudio.functional.rnnt_loss``."""
    functional = importlib.import_module("torchaudio.functional")
    _, _, s_lens, t_lens = inputs.boundary.int().contiguous().unbind(dim=1)
    return functional.rnnt_loss(
        logits,
        inputs.symbols.int(),
        t_lens.contiguous(),
        s_lens.contiguous(),
        blank=0,
        reduction="sum",
    )


def warprnnt_numba_loss(logits: Tensor, inputs: LossInputs) -> Tensor:
    """``warprnnt_numba.RNNTLossNumba``."""
    loss = importlib.import_module("warprnnt_numba").RNNTLossNumba(blank=0, reduction="sum")
    _, _, s_lens, t_lens = inputs.boundary.int().unbind(dim=1)
    return loss(logits, inputs.symbols.int(), t_lens.contiguous(), s_lens.contiguous()).squeeze()
