"""How tiles are cut and computed: what a user may choose, for one call or for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from panda_icefall.engine_choice import check_engine
from panda_icefall.normalizer.workspace import auto_workspace_bytes


@dataclass(frozen=True)
class TileOptions:
    """Options of one call, or of all of them.

    Attributes:
      workspace_bytes: upper bound of a tile's scratch, in bytes. None: by the device, see
        ``auto_workspace_bytes``.
      adjoint_tolerance: in the backward of selected log-probs, sites with the smallest absolute
        adjoints are left out as long as the mass left out is at most this share of the total, in
        ``[0, 1)``; sites with adjoint 0 are too. None: half the eps of the accumulation dtype
        (2^-24 for float32). 0: none; on CUDA not those with adjoint 0 either, as their number is
        not waited for.
      engine: "torch", "triton", or "auto", which is Triton on CUDA where it works and torch
        otherwise.

    Raises:
      ValueError: the tolerance is out of range, or there is no such engine.
      MissingEngineError: Triton is asked for and not installed.
    """

    workspace_bytes: int | None = None
    adjoint_tolerance: float | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        check_engine(self.engine)
        tolerance = self.adjoint_tolerance
        if tolerance is not None and not 0 <= tolerance < 1:
            raise ValueError(f"adjoint_tolerance: got {tolerance}, expected 0 <= it < 1")

    def workspace_on(self, device: torch.device) -> int:
        """Upper bound of a tile's scratch on a device, in bytes."""
        if self.workspace_bytes is None:
            return auto_workspace_bytes(device)
        return self.workspace_bytes

    def tolerance_in(self, dtype: torch.dtype) -> float:
        """The share of the adjoint mass to leave out, of sums in an accumulation dtype."""
        if self.adjoint_tolerance is None:
            return torch.finfo(dtype).eps / 2
        return self.adjoint_tolerance
