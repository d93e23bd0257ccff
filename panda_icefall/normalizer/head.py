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


@dataclass(frozen=True)
class ClassRanges:
    """Which classes of a head a call reads, and how; of the others it reads nothing.

    Attributes:
      normalized: those that the normaliser sums over; selected ids are among them.
      plain: those whose logits are given as they are.
    """

    normalized: range
    plain: range = range(0)

    def held(self, low: int, count: int) -> ClassRanges:
        """Those of ``count`` neighbouring classes from ``low`` on, counted from there."""

        def part(classes: range) -> range:
            ends = (classes.start, classes.stop)
            return range(*(min(max(end - low, 0), count) for end in ends))

        return ClassRanges(part(self.normalized), part(self.plain))


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
      read: which of the classes are read. Tiles are of the normalised ones, counted from the first
        of these.
    """

    weight: Tensor | None
    bias: Tensor | None
    row_dtype: torch.dtype | None
    gemms: Gemms
    read: ClassRanges

    @classmethod
    def of(
        cls,
        weight: Tensor | None,
        bias: Tensor | None,
        row_dtype: torch.dtype | None,
        dtype: torch.dtype,
        read: ClassRanges,
    ) -> LinearHead:
        """The head of a layer's parameters; copies nothing but a bias of another dtype."""
        if weight is None:
            return cls(None, None, None, Gemms(dtype, dtype), read)
        bias = None if bias is None else bias.detach().to(dtype)
        return cls(weight.detach(), bias, row_dtype, Gemms.of(weight, row_dtype, dtype), read)

    @property
    def dtype(self) -> torch.dtype:
        """The accumulation dtype."""
        return self.gemms.sums

    @property
    def class_bytes(self) -> int:
        """Bytes of the copies that ``part`` makes of a class's row of the weight."""
        if self.weight is None:
            return 0
        dtypes = (self.weight.dtype, self.row_dtype or self.weight.dtype, self.gemms.operands)
        copies = [new for old, new in itertools.pairwise(dtypes) if new != old]
        return self.weight.shape[1] * sum(torch.finfo(dtype).bits // 8 for dtype in copies)

    def classes_of(self, at: ClassTile) -> slice:
        """The classes of a tile, counted from the head's first one."""
        first = self.read.normalized.start
        return slice(first + at.low, first + at.high)

    @property
    def plain(self) -> slice:
        """The classes whose logits are given as they are."""
        return slice(self.read.plain.start, self.read.plain.stop)

    def part(self, classes: slice) -> tuple[Tensor | None, Tensor | None]:
        """Weight ``[c, H]`` and bias ``[c]`` of some classes."""
        if self.weight is None:
            return None, None
        return self._cast(self.weight[classes]), None if self.bias is None else self.bias[classes]

    def tile(self, at: ClassTile) -> tuple[Tensor | None, Tensor | None]:
        """``part`` of a tile's classes."""
        return self.part(self.classes_of(at))

    def tiles(self, plan: TilePlan) -> Callable[[ClassTile], tuple[Tensor | None, Tensor | None]]:
        """``tile``; where a tile has all classes, the weight is cast here, once for all rows."""
        if len(plan.class_tiles()) > 1:
            return self.tile
        whole = self.tile(plan.class_tiles()[0])
        return lambda at: whole

    def rows(self, hidden: Tensor) -> Tensor:
        """Hidden rows ``[n, H]`` as they meet the weight, contiguous."""
        return self._cast(hidden).contiguous()

    def logits(
        self,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        classes: slice,
        out: Tensor,
        leaves_bias: bool = False,
    ) -> Tensor | None:
        """Logits ``[n, c]`` of some classes in ``out``.

        Args:
          hidden: ``[n, H]``, as from ``rows``.
          weight, bias: the ``part`` of the classes.
          leaves_bias: somebody else adds it at no cost.

        Returns:
          The bias where it is still to be added, else None.
        """
        if weight is None:
            out.copy_(hidden[:, classes])
        elif bias is None or leaves_bias or not self.gemms.adds:
            self.gemms.multiply(hidden, weight.t(), out=out)
            return bias
        else:
            # What products are added to is read by the GEMM anyway.
            self.gemms.add_product(bias, hidden, weight.t(), out=out)
        return None

    def backward(
        self,
        grad: Tensor,
        weight: Tensor | None,
        classes: slice,
        hidden: Tensor,
        hidden_grad: Tensor | None,
        weight_grad: Tensor | None,
        is_first: bool = False,
    ) -> None:
        """Add what the gradient ``[n, c]`` of some classes' logits gives to rows and weight.

        Args:
          weight, hidden: as of ``logits``.
          hidden_grad: ``[n, H]``, or None.
          weight_grad: ``[C, H]``, of all classes, or None.
          is_first: nothing was added to ``hidden_grad``, which is not initialised.
        """
        if weight is None:
            if hidden_grad is not None:
                if is_first:
                    hidden_grad.zero_()
                hidden_grad[:, classes] = grad
            return
        if hidden_grad is not None and is_first:
            self.gemms.multiply(grad, weight, out=hidden_grad)
        elif hidden_grad is not None:
            self.gemms.add_product(hidden_grad, grad, weight, out=hidden_grad)
        if weight_grad is not None:
            total = weight_grad[classes]
            self.gemms.add_product(total, grad.t(), hidden, out=total)

    def _cast(self, tensor: Tensor) -> Tensor:
        # Rounded, then widened where they have to be: products of half values are exact in float32.
        rounded = tensor if self.row_dtype is None else tensor.to(self.row_dtype)
        return rounded.to(self.gemms.operands)
