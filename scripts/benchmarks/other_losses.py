"""Losses of other projects that read the logits ``[B, T, S+1, C]`` of the full lattice."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

from benchmarks.inputs import LossInputs


def k2_loss(logits: Tensor, inputs: LossInputs, rnnt_type: str = "regular") -> Tensor:
    """``k2.rnnt_loss`` of the k2 that is installed."""
    return importlib.import_module("k2").rnnt_loss(
        logits=logits,
        symbols=inputs.symbols,
        termination_symbol=0,
        boundary=inputs.boundary,
        rnnt_type=rnnt_type,
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


# By the name of the package.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "torchaudio": torchaudio_loss,
    "k2": k2_loss,
    "warprnnt_numba": warprnnt_numba_loss,
}
