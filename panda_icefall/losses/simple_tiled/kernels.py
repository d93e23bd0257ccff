"""Which row kernels work on the tiles of the simple loss: those in plain torch, or in Triton."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor

from panda_icefall.engine_choice import is_triton_chosen
from panda_icefall.losses.simple_tiled import rows
from panda_icefall.losses.simple_tiled.source import Selected


class RowKernels(Protocol):
    """The three functions on a tile; ``rows`` documents them."""

    def fold_(
        self,
        tile: Tensor,
        peak: Tensor,
        bias: Tensor | None = None,
        mass: Tensor | None = None,
        weights: Tensor | None = None,
        weighted: Tensor | None = None,
    ) -> Tensor: ...

    def exp_below_(self, tile: Tensor, peak: Tensor, bias: Tensor | None = None) -> Tensor: ...

    def gradient_(
        self,
        grad: Tensor,
        exp: Tensor,
        out: Tensor,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        weights: Tensor | None = None,
        selected: Selected | None = None,
    ) -> Tensor: ...


def row_kernels(engine: str, device: torch.device) -> RowKernels:
    """The row kernels for tensors on a device.

    Args:
      engine: as in ``is_triton_chosen``.
      device: where the tiles lie.

    Raises:
      ValueError: there is no such engine, or it cannot work on this device.
      MissingEngineError: Triton is asked for and not installed.
    """
    if not is_triton_chosen(engine, device):
        return cast(RowKernels, rows)
    from panda_icefall.losses.simple_tiled import triton_rows

    return cast(RowKernels, triton_rows)
