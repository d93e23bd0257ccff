"""How the simple loss is cut into tiles: utterances of like length by classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.source import ALIGNMENT

# A tile of fewer classes, or of fewer rows on a CPU, makes GEMMs that are bound by reading.
USEFUL_CLASSES = 512
LEAST_CLASSES = 64
USEFUL_ROWS = 256
# Launches cost more than the padding of a block's shorter utterances where there is a device.
USEFUL_ROWS_ON_DEVICE = 4096
# Of the workspace, that copies of both whole weights may take; larger ones are made tile by tile.
KEPT_SHARE = 1 / 4


@dataclass(frozen=True)
class Block:
    """Utterances that one tile works on, and their frames.

    Attributes:
      utterances: indices in the batch.
      begin, end: frames, half open; those of one utterance may take several blocks.
    """

    utterances: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SimpleTilePlan:
    """Tiles of some utterances by some classes over ``[B, T, C]`` and ``[B, S+1, C]``.

    Attributes:
      classes: C.
      tile_classes: classes of one tile; a multiple of ``ALIGNMENT`` where it is larger and not all.
      tile_bytes: bytes of the largest tile's scratch: two arrays for each of am and lm, the rows
        they are computed from, the weights of the selected classes and the gradients of both,
        and the weight where it has to be cast; and copies of both weights where they are kept.
      blocks: all utterances, the longest first, and all frames up to the last that the longest of
        a block needs; the others lie outside every boundary.
      order: int64 ``[B]`` on the device, the utterances, the longest first; None: copied there when
        it is asked for.
      keeps_copies: whether copies of the weights are made once for all tiles.
    """

    classes: int
    tile_classes: int
    tile_bytes: int
    blocks: tuple[Block, ...]
    order: Tensor | None = field(default=None, compare=False)
    keeps_copies: bool = True

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
        copy_bytes: int = 0,
        rounds_gradient: bool = False,
        useful_rows: int = USEFUL_ROWS,
    ) -> SimpleTilePlan:
        """Choose the tile sizes for one workspace budget.

        Args:
          t_ends: frames to compute of each utterance, B numbers.
          states: S + 1.
          classes: C >= 1.
          widths: input dimensions of the am and of the lm projection; 0 where there is none.
          itemsize: bytes of one number in the accumulation dtype.
          workspace_bytes: upper bound of ``tile_bytes``.
          casts_weight: whether a tile of each weight has to be cast first, in two steps.
          copy_bytes: for each class, of the copies that are read of both weights.
          rounds_gradient: whether a tile's gradients are written in half precision too.
          useful_rows: frames and states of a block beyond which it takes no more utterances.

        Raises:
          ValueError: the workspace cannot hold one frame and the states with a single class.
        """
        am_width, lm_width = widths
        weight_bytes = 2 * itemsize * (am_width + lm_width) if casts_weight else 0
        keeps_copies = classes * copy_bytes <= workspace_bytes * KEPT_SHARE
        kept_bytes = classes * copy_bytes if keeps_copies else 0
        weight_bytes += 0 if keeps_copies else copy_bytes
        useful = min(classes, USEFUL_CLASSES)

        def tile_bytes(utterances: int, frames: int, tile_classes: int) -> int:
            chosen = states * (am_width + lm_width)
            numbers = frames * am_width + states * lm_width + chosen
            numbers += tile_classes * (frames + states)
            rounded = tile_classes * (frames + states) * 2 if rounds_gradient else 0
            of_rows = utterances * (2 * itemsize * numbers + rounded)
            return of_rows + tile_classes * weight_bytes + kept_bytes

        least = tile_bytes(1, 1, 1)
        if workspace_bytes < least:
            raise ValueError(
                f"workspace_bytes: got {workspace_bytes}, expected at least {least} "
                f"(one frame and {states} states of one utterance, one class); raise it"
            )

        def frames_beside(tile_classes: int) -> int:
            of_states = tile_bytes(1, 0, tile_classes)
            per_frame = tile_bytes(1, 1, tile_classes) - of_states
            return (workspace_bytes - of_states) // per_frame

        # Every slice of an utterance's frames projects all of its states again.
        enough = min(states, max(t_ends, default=1))
        while useful > LEAST_CLASSES and frames_beside(useful) < enough:
            useful = max(LEAST_CLASSES, useful // 2)
        most_frames = max(1, frames_beside(useful))
        blocks: list[Block] = []
        by_length = sorted(range(len(t_ends)), key=lambda b: -t_ends[b])
        while by_length:
            frames = t_ends[by_length[0]]
            wanted = -(-useful_rows // (frames + states))
            while wanted > 1 and tile_bytes(wanted, frames, useful) > workspace_bytes:
                wanted -= 1
            utterances = tuple(by_length[:wanted])
            del by_length[:wanted]
            parts = max(1, -(-frames // most_frames)) if wanted == 1 else 1
            cuts = [frames * part // parts for part in range(parts + 1)]
            blocks += [Block(utterances, *cut) for cut in itertools.pairwise(cuts)]

        sizes = [(len(block.utterances), block.end - block.begin) for block in blocks]
        fixed = max((tile_bytes(n, frames, 0) for n, frames in sizes), default=0)
        per_class = max((tile_bytes(*size, 1) - tile_bytes(*size, 0) for size in sizes), default=1)
        affordable = max(1, (workspace_bytes - fixed) // per_class)
        step = ALIGNMENT if min(classes, affordable) >= ALIGNMENT else 1
        tiles = -(-classes // (affordable // step * step))
        tile_classes = -(-classes // (tiles * step)) * step
        largest = max((tile_bytes(*size, tile_classes) for size in sizes), default=0)
        return cls(
            classes, min(classes, tile_classes), largest, tuple(blocks), keeps_copies=keeps_copies
        )

    @property
    def tiles(self) -> int:
        """Tiles of one pass over everything."""
        return len(self.blocks) * -(-self.classes // self.tile_classes)

    def class_tiles(self) -> list[tuple[int, int]]:
        """Half-open class intervals that cover ``[0, classes)``."""
        step = self.tile_classes
        return [(low, min(low + step, self.classes)) for low in range(0, self.classes, step)]

    def blocks_on(self, device: torch.device) -> list[tuple[Tensor, slice]]:
        """Each block's utterances, int64 ``[n]`` on the device, and its frames."""
        order = self.order
        if order is None:
            utterances = [b for block in self.blocks if block.begin == 0 for b in block.utterances]
            order = torch.tensor(utterances, device=device, dtype=torch.int64)
        blocks, begin, end = [], 0, 0
        for block in self.blocks:
            if block.begin == 0:  # else further frames of the same utterance
                begin, end = end, end + len(block.utterances)
            blocks.append((order[begin:end], slice(block.begin, block.end)))
        return blocks
