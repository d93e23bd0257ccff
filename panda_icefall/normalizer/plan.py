"""How N sites and C classes are cut into tiles: the only place that thinks about sizes."""

from __future__ import annotations

from dataclasses import dataclass

# A GEMM over fewer rows than this is bound by reading the weight; below it, splitting the
# classes costs less than shrinking the row block further.
USEFUL_ROWS = 128

DEFAULT_WORKSPACE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class TilePlan:
    """Rows-first tiling of the ``[N, C]`` logits that are never kept.

    Attributes:
      sites: rows to evaluate, N.
      classes: C.
      tile_rows: rows of one tile; 0 when there are no sites.
      tile_classes: classes of one tile; C unless a useful row block did not fit.
      tile_bytes: bytes of one tile's scratch: its logits and its rows' program values.
    """

    sites: int
    classes: int
    tile_rows: int
    tile_classes: int
    tile_bytes: int

    @classmethod
    def make(
        cls, sites: int, classes: int, itemsize: int, row_bytes: int, workspace_bytes: int
    ) -> TilePlan:
        """Choose the tile sizes for one workspace budget.

        Args:
          sites: N >= 0.
          classes: C >= 1.
          itemsize: bytes of one logit in the accumulation dtype.
          row_bytes: scratch bytes a row needs besides its logits (hidden values, their gradients).
          workspace_bytes: upper bound of ``tile_bytes``.

        Raises:
          ValueError: the workspace cannot hold a single row with a single class.
        """
        smallest = row_bytes + itemsize
        if workspace_bytes < smallest:
            raise ValueError(
                f"workspace_bytes: got {workspace_bytes}, expected at least {smallest} "
                f"(one row of this joiner and one class); raise it"
            )
        tile_rows = min(sites, workspace_bytes // (classes * itemsize + row_bytes))
        tile_classes = classes
        if tile_rows < min(sites, USEFUL_ROWS):
            # Half of the workspace at most for the rows' own values, so that classes fit beside.
            affordable = max(1, workspace_bytes // max(1, 2 * row_bytes))
            tile_rows = min(sites, USEFUL_ROWS, affordable)
            left = workspace_bytes - tile_rows * row_bytes
            tile_classes = min(classes, max(1, left // (tile_rows * itemsize)))
        tile_bytes = tile_rows * (tile_classes * itemsize + row_bytes)
        return cls(sites, classes, tile_rows, tile_classes, tile_bytes)

    def row_tiles(self) -> list[tuple[int, int]]:
        """Half-open row intervals that cover ``[0, sites)``."""
        return _intervals(self.sites, self.tile_rows)

    def class_tiles(self) -> list[tuple[int, int]]:
        """Half-open class intervals that cover ``[0, classes)``."""
        return _intervals(self.classes, self.tile_classes)


def _intervals(total: int, step: int) -> list[tuple[int, int]]:
    return [(low, min(total, low + step)) for low in range(0, total, step)] if total else []
