"""A made-up batch, and the dense loss beside the routed one: shared by the examples."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from torchaudio.functional import rnnt_loss

    LIBRARY = "torchaudio"
except ImportError:  # the same loss, of logits too
    from panda_icefall.losses.of_logits import rnnt_loss

    LIBRARY = "panda_icefall's loss of logits"

# Rounding: both losses are computed in float32, in another order.
CLOSE = 1e-3


class Batch(NamedTuple):
    """What a training loop has.

    Attributes:
      frames: ``[B, T, D]``, what an encoder gets, or what it gives.
      symbols: int64 ``[B, U]``, 1 to C - 1, padded with 1.
      frame_lengths, symbol_lengths: int64 ``[B]``.
    """

    frames: Tensor
    symbols: Tensor
    frame_lengths: Tensor
    symbol_lengths: Tensor


def made_up_batch(B: int, U: int, C: int, D: int, frames_per_symbol: int = 5) -> Batch:
    """Utterances of U symbols and fewer, in which each symbol sounds for some frames."""
    g = torch.Generator().manual_seed(0)
    sounds = torch.randn(C, D, generator=g)
    lengths = torch.linspace(U // 2, U, B).long()
    symbols = torch.randint(1, C, (B, U), generator=g)
    symbols[torch.arange(U) >= lengths[:, None]] = 1
    frames = sounds[symbols].repeat_interleave(frames_per_symbol, dim=1)
    frames = frames + 0.1 * torch.randn(frames.shape, generator=g)
    return Batch(frames, symbols, frames_per_symbol * lengths, lengths)


def dense_loss(logits: Tensor, batch: Batch, blank: int) -> Tensor:
    """The loss from the logits ``[B, T, U + 1, C]``, as most projects compute it."""
    return rnnt_loss(
        logits,
        batch.symbols.int(),
        batch.frame_lengths.int(),
        batch.symbol_lengths.int(),
        blank=blank,
        reduction="mean",
    )


def compare(
    dense: Callable[[], Tensor], routed: Callable[[], Tensor], leaves: list[Tensor]
) -> None:
    """Print loss and peak memory of both, and how far their gradients are apart.

    Raises:
      SystemExit: they are not the same loss.
    """
    results = {}
    for name, loss_of, by in (("routed", routed, ""), ("dense", dense, f" ({LIBRARY})")):
        loss, gradients, peak = measured(loss_of, leaves)
        print(f"{name}{by}: loss {loss:.5f}, peak {peak:.1f} MiB")
        results[name] = [torch.tensor(loss), *gradients]
    apart = max(
        float((mine - reference).norm() / reference.norm().clamp(min=1e-6))
        for mine, reference in zip(results["routed"], results["dense"])
    )
    if not apart < CLOSE:
        raise SystemExit(f"loss and gradients differ by {apart:.1e} of their size")
    print(f"loss and gradients agree: {apart:.0e} of their size apart")


def measured(
    loss_of: Callable[[], Tensor], leaves: list[Tensor]
) -> tuple[float, list[Tensor], float]:
    """The loss, the gradients of the leaves, and the peak in MiB above what was held before."""
    gradients_of(loss_of, leaves)  # libraries load code and take buffers at their first use
    ctypes.CDLL(None).malloc_trim(0)
    before = _held_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget earlier peaks
    loss, gradients = gradients_of(loss_of, leaves)
    return loss, gradients, _held_mib("VmHWM") - before


def gradients_of(loss_of: Callable[[], Tensor], leaves: list[Tensor]) -> tuple[float, list[Tensor]]:
    """The loss and the gradients; what is drawn at random is the same each time."""
    torch.manual_seed(0)
    loss = loss_of()
    return loss.item(), list(torch.autograd.grad(loss, leaves))


def _held_mib(field: str) -> float:
    """Resident memory of this process: VmRSS now, VmHWM at its peak. Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status: got no {field}, expected Linux's; run on Linux")
