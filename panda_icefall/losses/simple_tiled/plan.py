"""How the simple loss's projections are cut into tiles, and which tile holds which symbol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A GEMM over fewer classes or rows than this is bound by reading its operands.
USEFUL_CLASSES = 512


@dataclass(frozen=True)
class Block:
    """Neighbouring utterances that one tile works on, and the frames of the longest of them.

    Attributes:
      begin, end: the utterances, half open.
      frames: leading frames that are computed; the others lie outside every boundary.
    """

    begin: int
    end: int
    frames: int

    @property
    def utterances(self) -> slice:
        return slice(self.begin, self.end)


@dataclass(frozen=True)
class SimpleTilePlan:
    """Tiles of some utterances by some classes over `[B, T, C]` and `[B, S+1, C]`.

    Attributes:
      classes: C.
      tile_classes: classes of one tile.
      tile_utterances: utterances of one tile.
      tile_bytes: bytes of one tile's scratch: two arrays for each of am and lm, the rows they are
        computed from and their gradients, and the weight where it has to be cast.
      blocks: all utterances, in order.
    """

    classes: int
    tile_classes: int
    tile_utterances: int
    tile_bytes: int
    blocks: tuple[Block, ...]

    @classmethod
    def make(
        cls,
        t_ends: Sequence[int],
        states: int,
        classes: int,
        widths: tuple[int, int],
        itemsize: int,
        workspace_bytes: int,
        *,
        casts_weight: bool = False,
    ) -> SimpleTilePlan:
        """Choose the tile sizes for one workspace budget.

        Args:
          t_ends: frames to compute of each utterance, B numbers.
          states: S + 1.
          classes: C >= 1.
          widths: input dimensions of the am and of the lm projection.
          itemsize: bytes of one number in the accumulation dtype.
          workspace_bytes: upper bound of `tile_bytes`.
          casts_weight: whether a tile of each weight has to be cast first, in two steps.

        Raises:
          ValueError: the workspace cannot hold one utterance with a single class.
        """
        frames = max(t_ends, default=0)
        am_width, lm_width = widths
        rows_bytes = 2 * itemsize * (frames * am_width + states * lm_width)
        class_bytes = 2 * itemsize * (frames + states)
        weight_bytes = 2 * itemsize * (am_width + lm_width) if casts_weight else 0

        def tile_bytes(utterances: int, tile_classes: int) -> int:
            per_class = utterances * class_bytes + weight_bytes
            return utterances * rows_bytes + tile_classes * per_class

        if workspace_bytes < tile_bytes(1, 1):
            raise ValueError(
                f"workspace_bytes: got {workspace_bytes}, expected at least {tile_bytes(1, 1)} "
                f"(one utterance of {frames} frames and {states} states, one class); raise it"
            )
        useful = min(classes, USEFUL_CLASSES)
        affordable = (workspace_bytes - useful * weight_bytes) // (
            rows_bytes + useful * class_bytes
        )
        utterances = max(1, min(len(t_ends), affordable))
        left = workspace_bytes - utterances * rows_bytes
        tile_classes = min(classes, left // (utterances * class_bytes + weight_bytes))
        blocks = tuple(
            Block(begin, min(begin + utterances, len(t_ends)), max(t_ends[begin:][:utterances]))
            for begin in range(0, len(t_ends), utterances)
        )
        return cls(classes, tile_classes, utterances, tile_bytes(utterances, tile_classes), blocks)

    def class_tiles(self) -> list[tuple[int, int]]:
        """Half-open class intervals that cover `[0, classes)`."""
        step = self.tile_classes
        return [(low, min(low + step, self.classes)) for low in range(0, self.classes, step)]


@dataclass(frozen=True)
class Selections:
    """The classes that the loss reads of each utterance, in the order in which tiles meet them.

    Attributes:
      ids: int64 `[B, S+1]`, the symbols and, in the last column, the blank.
      blank: the termination symbol.
      order: int64 `[B * (S+1)]`, flat positions in `ids`, by class tile and then by utterance.
      starts: where in `order` utterance b of class tile i begins, at `i * B + b`.
      tile_classes: classes of a tile.
    """

    ids: Tensor
    blank: int
    order: Tensor
    starts: list[int]
    tile_classes: int

    @classmethod
    def make(cls, symbols: Tensor, blank: int, plan: SimpleTilePlan) -> Selections:
        """Sort `symbols` `[B, S]` and the blank into the plan's tiles; one device sync."""
        B = symbols.shape[0]
        ids = torch.cat((symbols, symbols.new_full((B, 1), blank)), dim=1)
        utterance = torch.arange(B, device=ids.device).unsqueeze(1)
        tile = torch.div(ids, plan.tile_classes, rounding_mode="floor")
        keys, order = (tile * B + utterance).flatten().sort(stable=True)
        borders = torch.arange(len(plan.class_tiles()) * B + 1, device=ids.device)
        starts = torch.searchsorted(keys, borders).tolist()
        return cls(ids, blank, order, starts, plan.tile_classes)

    def inside(self, low: int, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """The selections in a tile: utterance within the block, column of `ids`, class within it.

        Args:
          low: the tile's first class.
          block: its utterances.

        Returns:
          Three int64 `[n]`.
        """
        B, columns = self.ids.shape
        first = low // self.tile_classes * B
        positions = self.order[self.starts[first + block.begin] : self.starts[first + block.end]]
        utterance = torch.div(positions, columns, rounding_mode="floor")
        chosen = self.ids.flatten()[positions] - low
        return utterance - block.begin, positions - utterance * columns, chosen
