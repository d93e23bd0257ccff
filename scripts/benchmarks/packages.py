"""Losses of other projects that read the logits ``[B, T, S+1, C]`` of the full lattice."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

from torch import Tensor

from benchmarks import k2_of_2025
from benchmarks.inputs import LossInputs


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
    """``k2.rnnt_loss`` as k2 of 2025 computes it."""
    return k2_of_2025.rnnt_loss(logits, inputs.symbols, 0, inputs.boundary, reduction="sum")


def k2_loss(logits: Tensor, inputs: LossInputs) -> Tensor:
    """``k2.rnnt_loss`` of the k2 that is installed."""
    return importlib.import_module("k2").rnnt_loss(
        logits=logits,
        symbols=inputs.symbols,
        termination_symbol=0,
        boundary=inputs.boundary,
        reduction="sum",
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
