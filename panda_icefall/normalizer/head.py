"""The last layer of a joiner: what its parameters and its rows are rounded to, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.normalizer.tensor_cores import holds_half


@dataclass(frozen=True)
class Head:
    """A linear layer, or none, and the dtype it is computed in.

    Attributes:
      weight: ``[C, H]``, detached, as given; None: the rows are the logits.
      bias: ``[C]``, or None.
      dtype: accumulation dtype, float32, or float64 for float64 inputs.
      row_dtype: dtype that rows and weight are rounded to before they meet: what autocast would do.
        None leaves them.
      is_half: the values are half-precision ones and on CUDA, whatever dtype holds them.
    """

    weight: Tensor | None
    bias: Tensor | None
    dtype: torch.dtype
    row_dtype: torch.dtype | None = None
    is_half: bool = False

    @classmethod
    def of(
        cls,
        weight: Tensor | None,
        bias: Tensor | None,
        row_dtype: torch.dtype | None,
        dtype: torch.dtype,
    ) -> Head:
        """The head of a layer's parameters; copies nothing."""
        if weight is None:
            return cls(None, None, dtype)
        is_half = holds_half(weight, row_dtype)
        bias = None if bias is None else bias.detach()
        return cls(weight.detach(), bias, dtype, row_dtype, is_half)

    @property
    def casts_weight(self) -> bool:
        """Whether ``tile`` makes copies."""
        return self.weight is not None and not self.weight.dtype == self.dtype == (
            self.row_dtype or self.dtype
        )

    def tile(self, low: int, high: int) -> tuple[Tensor | None, Tensor | None]:
        """Weight ``[c, H]`` and bias ``[c]`` of the classes ``[low, high)``."""
        if self.weight is None:
            return None, None
        # Added to sums in the accumulation dtype: nothing asks for rounding it.
        bias = None if self.bias is None else self.bias[low:high].to(self.dtype)
        return self._cast(self.weight[low:high]), bias

    def rows(self, hidden: Tensor) -> Tensor:
        """Hidden rows ``[n, H]`` as they meet the weight, contiguous."""
        return self._cast(hidden).contiguous()

    def _cast(self, tensor: Tensor) -> Tensor:
        # Rounded, then widened: products of half values are exact in float32.
        return (tensor if self.row_dtype is None else tensor.to(self.row_dtype)).to(self.dtype)
