"""Which row kernels work on the tiles: those in plain torch, or the Triton ones."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from panda_icefall.engine_choice import is_triton_chosen
from panda_icefall.normalizer import torch_rows
from panda_icefall.normalizer.plan import ClassTile


class RowKernels(Protocol):
    """The two functions on one tile of logits; ``torch_rows`` documents them.

    Attributes:
      ADDS_BIAS: whether they add the bias at no cost, so that GEMMs need not.
    """

    ADDS_BIAS: bool

    def fold(
        self,
        tile: Tensor,
        bias: Tensor | None,
        at: ClassTile,
        ids: Tensor,
        peak: Tensor,
        total: Tensor,
        chosen: Tensor,
    ) -> None: ...

    def gradient(
        self,
        tile: Tensor,
        bias: Tensor | None,
        at: ClassTile,
        ids: Tensor,
        log_z: Tensor,
        softmax_scale: Tensor,
        adjoints: Tensor,
        limits: Tensor | None,
        out: Tensor,
        bias_grad: Tensor | None,
    ) -> None: ...


def row_kernels(engine: str, device: torch.device) -> RowKernels:
    """The row kernels for tensors on a device.

    Args:
      engine: "torch", "triton", or "auto": Triton on CUDA where it works, else torch.
      device: where the logits lie.

    Raises:
      ValueError: there is no such engine, or it cannot work on this device.
      MissingEngineError: Triton is asked for and not installed.
    """
    if not is_triton_chosen(engine, device):
        return cast(RowKernels, torch_rows)
    from panda_icefall.normalizer import triton_rows

    return cast(RowKernels, triton_rows)
