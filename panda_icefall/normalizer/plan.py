"""How N sites and C classes are cut into tiles: the only place that thinks about sizes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from panda_icefall.normalizer.products import PIECE
from panda_icefall.normalizer.program import RowProgram

# Rows of the tiles that the last sites are cut into where each size has its compiled kernels.
_ONEDNN_SIZES = (PIECE, PIECE // 3)


@dataclass(frozen=True)
class TileCosts:
    """Scratch of a tile of n rows and c classes: ``n c logit + n row + c class_`` bytes.

    Attributes:
      logit_bytes: for each logit.
      row_bytes: for each row: the program's values and the hidden row, their gradients.
      class_bytes: for each class: what is not a view of the weight or of its gradient.
      by_onednn: whether oneDNN multiplies.
    """

    logit_bytes: int
    row_bytes: int
    class_bytes: int = 0
    by_onednn: bool = False

    @classmethod
    def of(
        cls,
        program: RowProgram,
        itemsize: int,
        *,
        casts_weight: bool,
        by_onednn: bool,
        with_gradients: bool,
    ) -> TileCosts:
        """The costs of a program's rows in one direction.

        Args:
          itemsize: bytes of one number in the accumulation dtype.
          casts_weight: whether tiles of the weight are copies, first rounded and then widened.
          by_onednn: its operands and results are copies: of a tile of logits, of the columns of
            hidden rows and weight, of products before they are added to a gradient.
          with_gradients: in backward.
        """
        values, width = program.row_bytes(), program.width * itemsize
        cast = 2 * width if casts_weight else 0
        # The hidden row may be a copy of the program's, and is one of its columns for oneDNN.
        rows, classes = values + 2 * width, cast + (2 * width if by_onednn else 0)
        if with_gradients:
            # The values' gradients are made when the products are done.
            products = values + 6 * width if by_onednn else 0
            rows = max(2 * values + 2 * width, products)
            classes += 2 * width if by_onednn else 0
        return cls(3 * itemsize if by_onednn else itemsize, rows, classes, by_onednn)

    def tile_bytes(self, rows: int, classes: int) -> int:
        """Scratch of one tile."""
        return rows * (classes * self.logit_bytes + self.row_bytes) + classes * self.class_bytes


@dataclass(frozen=True)
class TilePlan:
    """Tiling of the ``[N, C]`` logits that are never kept.

    Attributes:
      sites: rows to evaluate, N.
      classes: C.
      tile_rows: rows of a tile; the last ones of the sites may have fewer.
      tile_classes: classes of a tile; the last one may have fewer.
      tile_bytes: bytes of the largest tile's scratch.
      by_onednn: whether oneDNN multiplies.
    """

    sites: int
    classes: int
    tile_rows: int
    tile_classes: int
    tile_bytes: int
    by_onednn: bool = False

    @classmethod
    def make(cls, sites: int, classes: int, costs: TileCosts, workspace_bytes: int) -> TilePlan:
        """Choose the tile sizes for one workspace budget.

        Tiles are square where they can be: it is then that weight and rows are read least.

        Args:
          sites: N >= 0.
          classes: C >= 1.
          workspace_bytes: upper bound of ``tile_bytes``.

        Raises:
          ValueError: the workspace cannot hold a single row with a single class.
        """
        if workspace_bytes < costs.tile_bytes(1, 1):
            raise ValueError(
                f"workspace_bytes: got {workspace_bytes}, expected at least "
                f"{costs.tile_bytes(1, 1)} (one row of this joiner and one class); raise it"
            )
        # The side of the square that fills the workspace. With fewer sites more classes would fit,
        # but oneDNN compiles kernels for each size of tiles.
        linear = costs.row_bytes + costs.class_bytes
        root = math.isqrt(linear * linear + 4 * costs.logit_bytes * workspace_bytes)
        side = max(1, (root - linear) // (2 * costs.logit_bytes))
        rows = side if costs.by_onednn else min(sites, side)
        tile_classes = min(classes, _most(costs, workspace_bytes, rows=rows))
        tile_classes = -(-classes // -(-classes // tile_classes))
        tile_rows = _most(costs, workspace_bytes, classes=tile_classes)
        if costs.by_onednn:
            tile_rows -= tile_rows % next((s for s in _ONEDNN_SIZES if s <= tile_rows), 1)
        plan = cls(sites, classes, tile_rows, tile_classes, 0, costs.by_onednn)
        rows = max(min(sites, tile_rows), plan.least_rows) if sites else 0
        tile_bytes = costs.tile_bytes(rows, tile_classes) if sites else 0
        return dataclasses.replace(plan, tile_bytes=tile_bytes)

    @property
    def least_rows(self) -> int:
        """Rows of the smallest tile that is computed; with fewer sites it is filled up."""
        return min(self.tile_rows, *_ONEDNN_SIZES) if self.by_onednn else 1

    def row_tiles(self) -> list[tuple[int, int]]:
        """Half-open row intervals that cover ``[0, sites)``.

        The number of sites differs from call to call, and oneDNN would compile kernels for the
        last tile of each: so with it that one is cut into tiles of a few fixed sizes.
        """
        tiles: list[tuple[int, int]] = []
        begin = 0
        smaller = [s for s in _ONEDNN_SIZES if s < self.tile_rows] if self.by_onednn else []
        for rows in (self.tile_rows, *smaller):
            while self.sites - begin >= rows:
                tiles.append((begin, begin + rows))
                begin += rows
        return [*tiles, (begin, self.sites)] if begin < self.sites else tiles

    def class_tiles(self) -> list[tuple[int, int]]:
        """Half-open class intervals that cover ``[0, classes)``."""
        step = self.tile_classes
        return [(low, min(self.classes, low + step)) for low in range(0, self.classes, step)]

    @property
    def scratch_logits(self) -> int:
        """Logits of the largest tile where they are written into a scratch of that size."""
        return 0 if self.by_onednn else min(self.sites, self.tile_rows) * self.tile_classes


def _most(costs: TileCosts, workspace_bytes: int, *, rows: int = 0, classes: int = 0) -> int:
    """The classes that fit beside that many rows, or the rows that fit beside the classes."""
    taken = costs.tile_bytes(rows, classes)
    each = costs.tile_bytes(rows + (not rows), classes + (not classes)) - taken
    return max(1, (workspace_bytes - taken) // each)
