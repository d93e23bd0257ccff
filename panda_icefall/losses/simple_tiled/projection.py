"""A projection to classes that exists only as tiles, its running maxima, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.plan import Block

NEG_INF = float("-inf")


@dataclass(frozen=True)
class Projection:
    """`F.linear(input, weight, bias)` `[B, R, C]`, computed a tile at a time.

    Attributes:
      input: `[B, R, D]`.
      weight: `[C, D]`.
      bias: `[C]` or None.
      head_dtype: dtype that all three are rounded to first, or None.
      dtype: dtype of the arithmetic, float32 or float64.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    head_dtype: torch.dtype | None
    dtype: torch.dtype
    _scratch: dict[str, Tensor] = field(default_factory=dict)

    def full(self, *shape: int, value: float = 0.0) -> Tensor:
        """A new tensor of the arithmetic's dtype."""
        return torch.full(shape, value, dtype=self.dtype, device=self.weight.device)

    def buffer(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor, on the memory of the last one of this name where it fits."""
        size = torch.Size(shape).numel()
        if name not in self._scratch or self._scratch[name].numel() < size:
            self._scratch[name] = torch.empty(size, dtype=self.dtype, device=self.weight.device)
        return self._scratch[name][:size].view(shape)

    def release(self) -> None:
        """Give the buffers back."""
        self._scratch.clear()

    def operand(self, tensor: Tensor) -> Tensor:
        """What the linear layer reads, widened: products of half values are exact in float32."""
        tensor = tensor if self.head_dtype is None else tensor.to(self.head_dtype)
        return tensor.to(self.dtype)

    def rows(self, block: Block, length: int) -> Tensor:
        """The operand `[n * length, D]` of a block's first `length` frames or states."""
        rows = self.input[block.utterances, :length]
        return self.operand(rows).reshape(-1, rows.shape[2])

    def tile(self, block: Block, length: int, low: int, high: int) -> Tensor:
        """`[n, length, high - low]` of the classes in `[low, high)`, in the buffer "tile"."""
        rows, weight = self.rows(block, length), self.operand(self.weight[low:high]).t()
        out = self.buffer("tile", rows.shape[0], high - low)
        if self.bias is None:
            torch.mm(rows, weight, out=out)
        else:
            torch.addmm(self.operand(self.bias[low:high]), rows, weight, out=out)
        return out.view(block.end - block.begin, length, high - low)


@dataclass(frozen=True)
class Peaks:
    """Running maxima over the classes, and the class where each was met first.

    Attributes:
      values: `[B, R]`, -inf before the first tile.
      classes: int64 `[B, R]`.
    """

    values: Tensor
    classes: Tensor

    @classmethod
    def none_of(cls, projection: Projection) -> Peaks:
        """Before the first tile."""
        values = projection.full(*projection.input.shape[:2], value=NEG_INF)
        return cls(values, torch.zeros_like(values, dtype=torch.int64))

    def raised_by(self, tile: Tensor, block: Block, low: int) -> Tensor:
        """Take a tile of classes from `low` on into account.

        Returns:
          `[n, length]`, the factors of what was summed before: 0 where that was nothing.
        """
        values = self.values[block.utterances, : tile.shape[1]]
        classes = self.classes[block.utterances, : tile.shape[1]]
        tile_values, tile_classes = tile.max(dim=2)
        classes.copy_(torch.where(tile_values > values, tile_classes + low, classes))
        before = values.clone()
        values.copy_(torch.maximum(values, tile_values))
        return before.sub_(_subtrahend(values)).exp_()

    def exp_below(self, tile: Tensor, block: Block) -> Tensor:
        """`exp(tile - values)` in place."""
        values = self.values[block.utterances, : tile.shape[1]]
        return tile.sub_(_subtrahend(values).unsqueeze(2)).exp_()


def _subtrahend(values: Tensor) -> Tensor:
    """0 for -inf, which minus itself is no number; NaN and +inf stay, so that trouble shows."""
    return values.masked_fill(values == NEG_INF, 0.0)


@dataclass(frozen=True)
class ProjectionGrads:
    """Gradients in the arithmetic's dtype that tiles add to; None where none is wanted.

    Attributes:
      input, weight, bias: shaped as those of the projection.
    """

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, projection: Projection, needs: tuple[bool, bool, bool]) -> ProjectionGrads:
        """Buffers for those of input, weight and bias that need a gradient."""
        tensors = (projection.input, projection.weight, projection.bias)
        return cls(
            *(
                projection.full(*tensor.shape) if tensor is not None and need else None
                for tensor, need in zip(tensors, needs)
            )
        )

    def in_order(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.input, self.weight, self.bias

    def add(self, projection: Projection, grad: Tensor, block: Block, low: int, high: int) -> None:
        """Send a tile's gradient `[n, length, high - low]` back through the linear layer."""
        n, length, _ = grad.shape
        flat = grad.view(n * length, high - low)
        if self.input is not None:
            rows = projection.buffer("rows", flat.shape[0], self.input.shape[2])
            torch.mm(flat, projection.operand(projection.weight[low:high]), out=rows)
            self.input[block.utterances, :length] += rows.view(n, length, -1)
        if self.weight is not None:
            self.weight[low:high].addmm_(flat.t(), projection.rows(block, length))
        if self.bias is not None:
            self.bias[low:high] += flat.sum(dim=0)
