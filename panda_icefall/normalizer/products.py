"""The three GEMMs of a tile, by torch or, in float32 on an x86 CPU, by oneDNN.

torch gives float32 GEMMs on a CPU to MKL, which on AMD processors reaches half (MKL of torch 2.13)
or a quarter (of torch 1.13) of what oneDNN's inner product does on the same machine; oneDNN comes
with torch. Its logits are bitwise those of the same row and class in any other tile of more than
one class, so that forward's and backward's agree. It adds up the terms of a sum one after the
other, MKL in blocks; so sums are cut into pieces of ``PIECE`` terms here, which leaves an error
like MKL's.
"""

from __future__ import annotations

import platform
from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor

from panda_icefall.normalizer.head import Head
from panda_icefall.normalizer.tensor_cores import tensor_cores

# Terms of one sum: hidden dimensions, rows or classes.
PIECE = 192

_onednn = torch.ops.aten


class TorchProducts:
    """GEMMs of hidden rows ``[n, H]`` with class tiles of a head, by torch."""

    def __init__(self, hidden: Tensor, scratch: Tensor, is_half: bool) -> None:
        self._hidden, self._scratch, self._is_half = hidden, scratch, is_half

    def logits(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[n, c]`` of ``weight`` ``[c, H]``; the caller may overwrite it until the next call."""
        shape = self._hidden.shape[0], weight.shape[0]
        out = self._scratch[: shape[0] * shape[1]].view(shape)
        with tensor_cores(self._is_half):
            if bias is None:
                return torch.mm(self._hidden, weight.t(), out=out)
            return torch.addmm(bias, self._hidden, weight.t(), out=out)

    def add_gradients(
        self, grad: Tensor, weight: Tensor, hidden_grad: Tensor | None, weight_grad: Tensor | None
    ) -> None:
        """Add ``grad @ weight`` and ``grad.T @ hidden`` to the gradients that are wanted."""
        with tensor_cores(self._is_half):
            if hidden_grad is not None:
                hidden_grad.addmm_(grad, weight)
            if weight_grad is not None:
                weight_grad.addmm_(grad.t(), self._hidden)


class OneDnnProducts:
    """The same by oneDNN, whose tensors have a layout of their own.

    It compiles, and keeps, kernels for each number of rows: fewer than ``least_rows`` are filled up
    with zeros.
    """

    def __init__(self, hidden: Tensor, least_rows: int) -> None:
        self._rows, self._least_rows = hidden.shape[0], least_rows
        self._hidden = self._filled_up(hidden)
        parts = -(-hidden.shape[1] // PIECE)
        self._columns = [c.contiguous().to_mkldnn() for c in self._hidden.chunk(parts, dim=1)]

    def logits(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As of ``TorchProducts``."""
        first, *others = zip(self._columns, weight.chunk(len(self._columns), dim=1))
        out: Tensor = _onednn.mkldnn_linear(*first).to_dense()
        for part in others:
            out += _onednn.mkldnn_linear(*part).to_dense()
        if bias is not None:
            out += bias  # last: one rounding where it is large
        return out[: self._rows]

    def add_gradients(
        self, grad: Tensor, weight: Tensor, hidden_grad: Tensor | None, weight_grad: Tensor | None
    ) -> None:
        """As of ``TorchProducts``."""
        grad = self._filled_up(grad)
        for begin in range(0, grad.shape[0], PIECE):
            grad_rows = grad[begin : begin + PIECE]
            hidden = self._hidden[begin : begin + PIECE]
            if hidden_grad is not None:
                wanted = hidden_grad[begin : begin + PIECE]
                for columns, part in zip(grad_rows.split(PIECE, dim=1), weight.split(PIECE)):
                    product = _onednn.mkldnn_linear_backward_input(
                        hidden.shape, columns.contiguous().to_mkldnn(), part
                    )
                    wanted += product.to_dense()[: wanted.shape[0]]
            if weight_grad is not None:
                # Dense, as the weight is, which is given for no other reason.
                product, _ = _onednn.mkldnn_linear_backward_weights(
                    grad_rows.to_mkldnn(), hidden.to_mkldnn(), weight, False
                )
                weight_grad += product

    def _filled_up(self, rows: Tensor) -> Tensor:
        missing = self._least_rows - rows.shape[0]
        return F.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows


def is_onednn_chosen(head: Head) -> bool:
    """Whether oneDNN makes a head's products.

    It is where the accumulation is in float32 on an x86 CPU and torch has oneDNN switched on
    (``torch.backends.mkldnn``); elsewhere torch's own GEMMs are the vendor's.
    """
    return (
        head.weight.device.type == "cpu"
        and head.dtype == torch.float32
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
    )


def products(
    hidden: Tensor, head: Head, scratch: Tensor, by_onednn: bool, least_rows: int
) -> Union[TorchProducts, OneDnnProducts]:
    """The products of one row tile.

    Args:
      hidden: ``[n, H]`` contiguous, of the head's accumulation dtype.
      scratch: room for the tile's logits where torch makes them: ``n`` times classes of a tile.
      by_onednn: ``is_onednn_chosen``.
      least_rows: smallest number of rows to give to oneDNN.
    """
    if by_onednn:
        return OneDnnProducts(hidden, least_rows)
    return TorchProducts(hidden, scratch, head.is_half)
