"""A projection to classes that exists only as tiles, and the gradients of its three tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from panda_icefall.dtypes import HALVES, WIDE
from panda_icefall.losses.simple_tiled.source import LogitBlock, LogitSource, Parts
from panda_icefall.normalizer.tensor_cores import Gemms


@dataclass(frozen=True)
class Projection(LogitSource):
    """``F.linear(input, weight, bias)`` ``[B, R, C]``; the parts are these three tensors.

    Attributes:
      head_dtype: dtype that all three are rounded to first, as autocast does for a linear layer;
        the outputs are float32 and not rounded. None: all three have one dtype, float32 or float64.
      gemms: how matrices are multiplied. Of half ones the gradient of the logits is rounded to half
        precision, as in the dense path, and copies of weight and bias are read.
      keeps_copies: whether these are of all classes, made once; else of the last tile's.
    """

    head_dtype: torch.dtype | None = None
    gemms: Gemms = field(default_factory=lambda: Gemms(torch.float32, torch.float32))
    keeps_copies: bool = True
    # The classes that a copy is of, and it.
    _copies: dict[str, tuple[tuple[int, int], Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, parts: Sequence[Tensor | None], head_dtype: torch.dtype | None = None
    ) -> Projection:
        """Of ``input`` ``[B, R, D]``, ``weight`` ``[C, D]`` and ``bias`` ``[C]`` or None.

        Raises:
          ValueError: shapes or devices that do not fit each other.
          TypeError: dtypes that no linear layer takes together.
        """
        input, weight, bias = parts
        assert input is not None
        assert weight is not None
        _check_parts(input, weight, bias, head_dtype)
        dtype = input.dtype if head_dtype is None else torch.float32
        gemms = Gemms.of(weight, head_dtype, dtype)
        return cls(
            parts=tuple(parts),
            dtype=dtype,
            device=input.device,
            rows=input.shape[1],
            classes=weight.shape[0],
            width=input.shape[2],
            casts_weight=head_dtype is not None and not gemms.widens,
            copy_bytes=_copy_bytes(weight, bias, gemms) if gemms.widens else 0,
            gradient_dtype=gemms.operands,
            merges_selected=gemms.holds_half,
            head_dtype=head_dtype,
            gemms=gemms,
        )

    @property
    def remake(self) -> Callable[[Sequence[Tensor | None]], LogitSource]:
        make = functools.partial(Projection.of, head_dtype=self.head_dtype)
        return make if self.keeps_copies else lambda parts: make(parts).copying_by_tile()

    def copying_by_tile(self) -> Projection:
        return replace(self, keeps_copies=False)

    def release(self) -> None:
        super().release()
        self._copies.clear()

    def open(self, utterances: Tensor, rows: slice, grads: Parts | None = None) -> LogitBlock:
        return _ProjectedRows(self, utterances, rows, grads or (None, None, None))

    def operand(self, tensor: Tensor) -> Tensor:
        """What the linear layer reads: products of half values are exact in float32."""
        tensor = tensor if self.head_dtype is None else tensor.to(self.head_dtype)
        return tensor.to(self.gemms.operands)

    def widened(self, tensor: Tensor) -> Tensor:
        """What the linear layer reads, in the dtype of the arithmetic."""
        return self.operand(tensor).to(self.dtype)

    def head_tile(self, name: str, low: int, high: int) -> Tensor | None:
        """What is read of the weight or of the bias for a tile of classes.

        Args:
          name: "weight" or "bias".
        """
        part = self.parts[1 if name == "weight" else 2]
        if part is None:
            return None
        if not self.gemms.widens:
            return self.operand(part[low:high])
        wanted = (0, self.classes) if self.keeps_copies else (low, high)
        if name not in self._copies or self._copies[name][0] != wanted:
            self._copies.pop(name, None)  # before there is another one
            self._copies[name] = wanted, self.operand(part[slice(*wanted)])
        (first, _), copy = self._copies[name]
        return copy[low - first : high - first]


def _copy_bytes(weight: Tensor, bias: Tensor | None, gemms: Gemms) -> int:
    """Bytes of a class's weight and bias in the dtype of the operands, where they have another."""
    sizes = [(weight, weight.shape[1])] + ([] if bias is None else [(bias, 1)])
    itemsize = torch.finfo(gemms.operands).bits // 8
    return sum(itemsize * size for tensor, size in sizes if tensor.dtype != gemms.operands)


def _check_parts(
    input: Tensor, weight: Tensor, bias: Tensor | None, head_dtype: torch.dtype | None
) -> None:
    """Refuse what ``F.linear`` would refuse or broadcast, and dtypes that it does not take."""
    rounded = (*HALVES, torch.float32)
    if head_dtype is not None and head_dtype not in rounded:
        raise TypeError(f"head_dtype: got {head_dtype}, expected None or one of {rounded}")
    if input.dim() != 3 or input.shape[1] == 0:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected [B, R, D], R >= 1")
    if weight.dim() != 2 or weight.shape[1] != input.shape[2] or weight.shape[0] == 0:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected [C, {input.shape[2]}], C >= 1, for "
            f"input of shape {tuple(input.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias: got shape {tuple(bias.shape)}, expected [{weight.shape[0]}] or None"
        )
    if head_dtype is not None:
        allowed: tuple[torch.dtype, ...] = rounded
    else:
        allowed = (input.dtype,) if input.dtype in WIDE else WIDE
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype not in allowed:
            raise TypeError(
                f"{name}: got {tensor.dtype}, expected {' or '.join(map(str, allowed))} with "
                f"head_dtype={head_dtype}"
            )
        if tensor.device != input.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected {input.device}")


class _ProjectedRows(LogitBlock):
    """A block's rows, gathered once, and their gradients, added to the input's once."""

    def __init__(self, source: Projection, utterances: Tensor, rows: slice, grads: Parts) -> None:
        input, weight, self._bias = source.parts
        assert input is not None
        assert weight is not None
        self._source, self._weight = source, weight
        self._utterances, self._places = utterances, rows
        self._rows = source.operand(input[:, rows].index_select(0, utterances))
        self._input_grad, self._weight_grad, self._bias_grad = grads
        self._row_grads = None if self._input_grad is None else source.full(*self._rows.shape)

    def tile(self, low: int, high: int) -> Tensor:
        source, rows = self._source, self._rows.flatten(0, 1)
        tile = source.buffer("tile", (*self._rows.shape[:2], high - low))
        weight = self._weight_tile(low, high).t()
        bias = None if source.gemms.widens else source.head_tile("bias", low, high)
        if bias is None:
            source.gemms.multiply(rows, weight, out=tile.flatten(0, 1))
        else:
            source.gemms.add_product(bias, rows, weight, out=tile.flatten(0, 1))
        return tile

    def bias(self, low: int, high: int) -> Tensor | None:
        return self._source.head_tile("bias", low, high) if self._source.gemms.widens else None

    def at(self, ids: Tensor) -> Tensor:
        rows = self._rows.to(self._source.dtype)
        chosen = torch.bmm(self._weights_at(ids), rows.transpose(1, 2))
        if self._bias is not None:
            chosen += self._source.widened(self._bias[ids]).unsqueeze(2)
        return chosen

    def add(self, grad: Tensor, low: int, high: int) -> None:
        flat, add_product = grad.flatten(0, 1), self._source.gemms.add_product
        if self._row_grads is not None:
            total = self._row_grads.flatten(0, 1)
            add_product(total, flat, self._weight_tile(low, high), out=total)
        if self._weight_grad is not None:
            total = self._weight_grad[low:high]
            add_product(total, flat.t(), self._rows.flatten(0, 1), out=total)
        if self._bias_grad is not None:
            self._bias_grad[low:high].add_(flat.sum(dim=0, dtype=self._source.dtype))

    def add_at(self, ids: Tensor, grad: Tensor) -> None:
        if self._row_grads is not None:
            self._row_grads.baddbmm_(grad.transpose(1, 2), self._weights_at(ids))
        if self._weight_grad is not None:
            weights = torch.bmm(grad, self._rows.to(grad.dtype)).flatten(0, 1)
            self._weight_grad.index_add_(0, ids.flatten(), weights)
        if self._bias_grad is not None:
            self._bias_grad.index_add_(0, ids.flatten(), grad.sum(dim=2).flatten())

    def close(self) -> None:
        if self._input_grad is not None and self._row_grads is not None:
            self._input_grad[:, self._places].index_add_(0, self._utterances, self._row_grads)

    def _weight_tile(self, low: int, high: int) -> Tensor:
        weight = self._source.head_tile("weight", low, high)
        assert weight is not None
        return weight

    def _weights_at(self, ids: Tensor) -> Tensor:
        return self._source.widened(self._weight[ids])  # [n, K, D]
