"""How N sites and C classes are cut into tiles: the only place that thinks about sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from panda_icefall.normalizer.program import RowProgram

# Rows and classes below which a GEMM is bound by reading its operands.
USEFUL_SIDE = 192


@dataclass(frozen=True)
class TileCosts:
    """Scratch of a tile of n rows and c classes: ``n c logit + n row + c class_`` bytes.

    Attributes:
      logit_bytes: for each logit.
      row_bytes: for each row: the program's values and the hidden row, their gradients.
      class_bytes: for each class: what is not a view of the weight or of its gradient.
    """

    logit_bytes: int
    row_bytes: int
    class_bytes: int = 0

    @classmethod
    def of(
        cls,
        program: RowProgram,
        itemsize: int,
        *,
        casts_weight: bool,
        with_gradients: bool,
    ) -> TileCosts:
        """The costs of a program's rows in one direction.

        Args:
          itemsize: bytes of one number in the accumulation dtype.
          casts_weight: whether tiles of the weight are copies, first rounded and then widened.
          with_gradients: in backward.
        """
        values, width = program.row_bytes(), program.width * itemsize
        # The hidden row may be a copy of the program's. In backward the values' gradients are made
        # when the GEMMs are done.
        rows = (2 if with_gradients else 1) * values + 2 * width
        return cls(itemsize, rows, 2 * width if casts_weight else 0)

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
    """

    sites: int
    classes: int
    tile_rows: int
    tile_classes: int
    tile_bytes: int

    @classmethod
    def make(
        cls,
        sites: int,
        classes: int,
        costs: TileCosts,
        workspace_bytes: int,
        *,
        splits_classes: bool = True,
    ) -> TilePlan:
        """Choose the tile sizes for one workspace budget.

        Tiles are square where they can be: it is then that weight and rows are read least.

        Args:
          sites: N >= 0.
          classes: C >= 1.
          workspace_bytes: upper bound of ``tile_bytes``.
          splits_classes: False where a row has all its logits at once: it has no weight.

        Raises:
          ValueError: the workspace cannot hold a single row with a single class, or with all of
            them where they are not split.
        """
        fewest = 1 if splits_classes else classes
        if workspace_bytes < costs.tile_bytes(1, fewest):
            raise ValueError(
                f"workspace_bytes: got {workspace_bytes}, expected at least "
                f"{costs.tile_bytes(1, fewest)} (one row of this joiner and "
                f"{'one class' if splits_classes else f'its {classes} classes'}); raise it"
            )
        # The side of the square that fills the workspace.
        linear = costs.row_bytes + costs.class_bytes
        root = math.isqrt(linear * linear + 4 * costs.logit_bytes * workspace_bytes)
        side = max(1, (root - linear) // (2 * costs.logit_bytes))
        tile_classes = min(classes, _most(costs, workspace_bytes, rows=min(sites, side)))
        tile_classes = -(-classes // -(-classes // tile_classes)) if splits_classes else classes
        tile_rows = min(sites, _most(costs, workspace_bytes, classes=tile_classes))
        tile_bytes = costs.tile_bytes(tile_rows, tile_classes) if sites else 0
        return cls(sites, classes, tile_rows, tile_classes, tile_bytes)

    def row_tiles(self) -> list[tuple[int, int]]:
        """Half-open row intervals that cover ``[0, sites)``."""
        return _intervals(self.sites, self.tile_rows)

    def class_tiles(self) -> list[tuple[int, int]]:
        """Half-open class intervals that cover ``[0, classes)``."""
        return _intervals(self.classes, self.tile_classes)


def _intervals(total: int, step: int) -> list[tuple[int, int]]:
    return [(low, min(total, low + step)) for low in range(0, total, step)] if total else []


def _most(costs: TileCosts, workspace_bytes: int, *, rows: int = 0, classes: int = 0) -> int:
    """The classes that fit beside that many rows, or the rows that fit beside the classes."""
    taken = costs.tile_bytes(rows, classes)
    each = costs.tile_bytes(rows + (not rows), classes + (not classes)) - taken
    return max(1, (workspace_bytes - taken) // each)
