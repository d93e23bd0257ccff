"""How N sites and C classes are cut into tiles: the only place that thinks about sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from panda_icefall.normalizer.program import RowProgram

# Rows and classes below which a GEMM is bound by reading its operands.
USEFUL_SIDE = 192
# Of the rows of a square tile, on a GPU: with as many, all classes at once save launches. On a CPU
# (B=20 T=145 S=17 C=4336 H=512, ``scripts/bench_loss.py``) such products take 14 MiB of MKL's own
# buffers more than square ones, and are not faster.
LEAST_SHARE_ON_DEVICE = 1 / 2
# GEMMs and row kernels are fast where rows of a tile begin at multiples of 16 bytes and its sides
# fill the blocks that they are computed in.
ROW_UNIT = 128
CLASS_UNIT = 64
# Rows whose bias gradient a row kernel may add up before it writes the sums.
SUMMED_ROWS = 64


class ClassTile(NamedTuple):
    """The classes ``[low, high)``; whether they are all there are."""

    low: int
    high: int
    is_whole: bool

    @property
    def width(self) -> int:
        return self.high - self.low


@dataclass(frozen=True)
class TileCosts:
    """Scratch of a tile of n rows and c classes: ``n c logit + n row + c class_`` bytes.

    Attributes:
      logit_bytes: for each logit.
      row_bytes: for each row: the program's values and the hidden row, their gradients.
      class_bytes: for each class: what is not a view of the weight or of its gradient.
    """

    logit_bytes: float
    row_bytes: int
    class_bytes: int = 0

    @classmethod
    def of(
        cls,
        program: RowProgram,
        itemsize: int,
        *,
        class_bytes: int = 0,
        half_gradient: bool = False,
        with_gradients: bool = False,
    ) -> TileCosts:
        """The costs of a program's rows in one direction.

        Args:
          itemsize: bytes of one number in the accumulation dtype.
          class_bytes: of a class's row of the weight that are copies or sums.
          half_gradient: whether the gradient is a half-precision tile beside that of the logits.
          with_gradients: in backward.
        """
        values, width = program.row_bytes(), program.width * itemsize
        # The hidden row may be a copy of the program's. In backward the values' gradients are made
        # when the GEMMs are done.
        if not with_gradients:
            return cls(itemsize, values + 2 * width, class_bytes)
        logit = itemsize * (1 + 1 / SUMMED_ROWS) + (2 if half_gradient else 0)
        return cls(logit, 2 * values + 2 * width, class_bytes + itemsize)

    def tile_bytes(self, rows: int, classes: int) -> int:
        """Scratch of one tile."""
        of_logits = math.ceil(rows * classes * self.logit_bytes)
        return of_logits + rows * self.row_bytes + classes * self.class_bytes


@dataclass(frozen=True)
class TilePlan:
    """Tiling of the ``[N, C]`` logits that are never kept.

    Attributes:
      sites: rows to evaluate, N.
      classes: C.
      tile_rows: rows of a tile; the last ones of the sites may have fewer.
      tile_classes: classes of a tile; the last one may have fewer.
      row_stride: numbers from one row of a tile to the next, ``tile_classes`` or a few more.
      tile_bytes: bytes of the largest tile's scratch.
    """

    sites: int
    classes: int
    tile_rows: int
    tile_classes: int
    row_stride: int
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
        least_share: float = 1.0,
    ) -> TilePlan:
        """Choose the tile sizes for one workspace budget.

        Tiles have all classes where that leaves them enough rows, and are square otherwise: it is
        then that weight and rows are read least. Their sides are multiples of ``ROW_UNIT`` and
        ``CLASS_UNIT``, of smaller powers of two where they are short.

        Args:
          sites: N >= 0.
          classes: C >= 1.
          workspace_bytes: upper bound of ``tile_bytes``.
          splits_classes: False where a row has all its logits at once: it has no weight.
          least_share: of a square tile's rows, that are enough for tiles of all classes.

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
        root = math.sqrt(linear * linear + 4 * costs.logit_bytes * workspace_bytes)
        side = max(1, int((root - linear) / (2 * costs.logit_bytes)))
        rows = min(sites, max(1, int(side * least_share)))
        tile_classes = classes
        if splits_classes and _most(costs, workspace_bytes, rows=rows) < classes:
            affordable = _most(costs, workspace_bytes, rows=min(sites, side))
            tile_classes = _share(classes, affordable, CLASS_UNIT)
        row_stride = _up(tile_classes, _unit(tile_classes, CLASS_UNIT))
        if costs.tile_bytes(1, row_stride) > workspace_bytes:
            row_stride = tile_classes
        tile_rows = _share(sites, _most(costs, workspace_bytes, classes=row_stride), ROW_UNIT)
        tile_bytes = costs.tile_bytes(tile_rows, row_stride) if sites else 0
        return cls(sites, classes, tile_rows, tile_classes, row_stride, tile_bytes)

    def row_tiles(self) -> list[tuple[int, int]]:
        """Half-open row intervals that cover ``[0, sites)``."""
        return _intervals(self.sites, self.tile_rows)

    def class_tiles(self) -> list[ClassTile]:
        """Half-open class intervals that cover ``[0, classes)``, ascending."""
        is_whole = self.tile_classes == self.classes
        intervals = _intervals(self.classes, self.tile_classes)
        return [ClassTile(low, high, is_whole) for low, high in intervals]


def _intervals(total: int, step: int) -> list[tuple[int, int]]:
    return [(low, min(total, low + step)) for low in range(0, total, step)] if total else []


def _share(total: int, most: int, unit: int) -> int:
    """The size of tiles of at most ``most`` that cover a total: of like size, whole units each."""
    if most >= total:
        return total
    unit = _unit(most, unit)
    most -= most % unit
    return _up(-(-total // -(-total // most)), unit)


def _unit(size: int, unit: int) -> int:
    """The unit, a power of two, halved until rounding a size to it is at most a quarter of it."""
    while unit > 1 and size < 4 * unit:
        unit //= 2
    return unit


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _most(costs: TileCosts, workspace_bytes: int, *, rows: int = 0, classes: int = 0) -> int:
    """The classes that fit beside that many rows, or the rows that fit beside the classes."""
    taken = rows * costs.row_bytes + classes * costs.class_bytes
    if classes:
        each = classes * costs.logit_bytes + costs.row_bytes
    else:
        each = max(rows, 1) * costs.logit_bytes + costs.class_bytes
    return max(1, int((workspace_bytes - taken) / each))
