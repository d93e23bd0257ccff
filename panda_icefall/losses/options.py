"""What a user may choose for one loss, or for all of them: the tiles, and the recursion."""

from __future__ import annotations

from dataclasses import dataclass

from panda_icefall.engine_choice import check_recursion
from panda_icefall.normalizer import TileOptions


@dataclass(frozen=True)
class LossOptions(TileOptions):
    """Options of the tiles, and of the recursion over the lattice; the engine is that of both.

    Attributes:
      recursion: "k2", "exact" or "auto", as in ``panda_icefall.lattice.is_k2_chosen``.

    Raises:
      ValueError: as ``TileOptions``, or there is no such recursion.
      MissingEngineError: Triton or k2 is asked for and not installed.
    """

    recursion: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_recursion(self.recursion)
