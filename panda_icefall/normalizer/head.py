"""The last layer of a joiner: its logits as what computes them, and tile by tile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_icefall.normalizer.plan import ClassTile, TilePlan
from panda_icefall.normalizer.program import RowProgram
from panda_icefall.normalizer.tensor_cores import Gemms


@dataclass(frozen=True, eq=False)
class ClassShard:
    """Which classes of a head this process has; other ranks of a group have the others.

    Attributes:
      low: the first of them.
      classes: C, those of all ranks.
      group: the ``torch.distributed.ProcessGroup``.
    """

    low: int
    classes: int
    group: Any


@dataclass(frozen=True, eq=False)
class RowLogits:
    """The logits ``[N, C]`` of N sites, ``F.linear(rows, weight, bias)``, which are never made.

    Attributes:
      rows: ``[N, H]`` as the program that computes them.
      weight: ``[C, H]``, of the rows' dtype unless ``head_dtype`` is given. None: the rows are the
        logits, H = C; those of a program exist for the rows of a tile only.
      bias: ``[C]`` floating point, or None; added in the dtype of the sums.
      head_dtype: dtype that rows and weight are rounded to first, as autocast does for a linear
        layer; arithmetic after that is in float32.
      shard: of which of the C classes weight and bias are; None: of all.
    """

    rows: RowProgram
    weight: Tensor | None = None
    bias: Tensor | None = None
    head_dtype: torch.dtype | None = None
    shard: ClassShard | None = None

    @property
    def classes(self) -> int:
        """C."""
        if self.shard is not None:
            return self.shard.classes
        return self.rows.width if self.weight is None else self.weight.shape[0]

    def part(self, low: int, high: int) -> RowLogits:
        """The logits of the classes ``[low, high)``."""
        if self.weight is None:
            rows = self.rows.then(lambda values: values[..., low:high], width=high - low)
            return RowLogits(rows, head_dtype=self.head_dtype)
        shard = self.shard
        if shard is not None:
            part = ClassShard(max(shard.low - low, 0), high - low, shard.group)
            held = self.weight.shape[0]
            low, high = (min(max(at - shard.low, 0), held) for at in (low, high))
            shard = part
        bias = None if self.bias is None else self.bias[low:high]
        return RowLogits(self.rows, self.weight[low:high], bias, self.head_dtype, shard)

    @property
    def dtype(self) -> torch.dtype:
        """The accumulation dtype: float64 for float64 inputs, else float32."""
        given = [self.rows.dtype] + ([] if self.weight is None else [self.weight.dtype])
        is_double = torch.float64 in given and self.head_dtype is None
        return torch.float64 if is_double else torch.float32


@dataclass(frozen=True)
class LinearHead:
    """A linear layer, or none, and the dtypes it is computed in.

    Attributes:
      weight: ``[C, H]``, detached, as given; None: the rows are the logits.
      bias: ``[C]`` in the accumulation dtype, or None: nothing asks for rounding it.
      row_dtype: dtype that rows and weight are rounded to before they meet: what autocast would do.
        None leaves them.
      gemms: of rows and weight; their sums are in the accumulation dtype, float32, or float64 for
        float64 inputs.
    """

    weight: Tensor | None
    bias: Tensor | None
    row_dtype: torch.dtype | None
    gemms: Gemms

    @classmethod
    def of(
        cls,
        weight: Tensor | None,
        bias: Tensor | None,
        row_dtype: torch.dtype | None,
        dtype: torch.dtype,
    ) -> LinearHead:
        """The head of a layer's parameters; copies nothing but a bias of another dtype."""
        if weight is None:
            return cls(None, None, None, Gemms(dtype, dtype))
        bias = None if bias is None else bias.detach().to(dtype)
        return cls(weight.detach(), bias, row_dtype, Gemms.of(weight, row_dtype, dtype))

    @property
    def dtype(self) -> torch.dtype:
        """The accumulation dtype."""
        return self.gemms.sums

    @property
    def class_bytes(self) -> int:
        """Bytes of the copies that ``tile`` makes of a class's row of the weight."""
        if self.weight is None:
            return 0
        dtypes = (self.weight.dtype, self.row_dtype or self.weight.dtype, self.gemms.operands)
        copies = [new for old, new in itertools.pairwise(dtypes) if new != old]
        return self.weight.shape[1] * sum(torch.finfo(dtype).bits // 8 for dtype in copies)

    def tile(self, at: ClassTile) -> tuple[Tensor | None, Tensor | None]:
        """Weight ``[c, H]`` and bias ``[c]`` of some classes."""
        if self.weight is None:
            return None, None
        bias = None if self.bias is None else self.bias[at.low : at.high]
        return self._cast(self.weight[at.low : at.high]), bias

    def tiles(self, plan: TilePlan) -> Callable[[ClassTile], tuple[Tensor | None, Tensor | None]]:
        """``tile``; where a tile has all classes, the weight is cast here, once for all rows."""
        if len(plan.class_tiles()) > 1:
            return self.tile
        whole = self.tile(plan.class_tiles()[0])
        return lambda at: whole

    def rows(self, hidden: Tensor) -> Tensor:
        """Hidden rows ``[n, H]`` as they meet the weight, contiguous."""
        return self._cast(hidden).contiguous()

    def _cast(self, tensor: Tensor) -> Tensor:
        # Rounded, then widened where they have to be: products of half values are exact in float32.
        rounded = tensor if self.row_dtype is None else tensor.to(self.row_dtype)
        return rounded.to(self.gemms.operands)
