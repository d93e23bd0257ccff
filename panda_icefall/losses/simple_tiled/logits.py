"""am or lm as a tensor that exists: read by classes, its gradient written by classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.losses.simple_tiled.source import LogitBlock, LogitSource, Parts


@dataclass(frozen=True)
class Logits(LogitSource):
    """A tensor ``[B, R, C]``, the only part."""

    @classmethod
    def of(cls, parts: Sequence[Tensor | None]) -> Logits:
        """The source that reads the tensor ``[B, R, C]``, float32 or float64.

        Raises:
          ValueError: it has other than 3 dimensions.
        """
        (values,) = parts
        assert values is not None
        if values.dim() != 3:
            raise ValueError(
                f"am or lm: got shape {tuple(values.shape)}, expected [B, T, C] or [B, S+1, C]"
            )
        _, rows, classes = values.shape
        return cls(tuple(parts), values.dtype, values.device, rows, classes)

    @property
    def remake(self) -> Callable[[Sequence[Tensor | None]], LogitSource]:
        return Logits.of

    def open(self, utterances: Tensor, rows: slice, grads: Parts | None = None) -> LogitBlock:
        return _LogitRows(self, utterances, rows, None if grads is None else grads[0])


class _LogitRows(LogitBlock):
    """A block's rows, copied by tiles of classes."""

    def __init__(
        self, source: Logits, utterances: Tensor, rows: slice, grad: Tensor | None
    ) -> None:
        (values,) = source.parts
        assert values is not None
        self._source, self._values, self._grad = source, values, grad
        self._utterances, self._rows = utterances, rows

    def tile(self, low: int, high: int) -> Tensor:
        values = self._values.detach()[:, self._rows, low:high]
        out = self._source.buffer("tile", (len(self._utterances), *values.shape[1:]))
        return torch.index_select(values, 0, self._utterances, out=out)

    def at(self, ids: Tensor) -> Tensor:
        return self._values[self._places(ids)]

    def add(self, grad: Tensor, low: int, high: int) -> None:
        if self._grad is not None:
            self._grad[:, self._rows, low:high].index_add_(0, self._utterances, grad)

    def add_at(self, ids: Tensor, grad: Tensor) -> None:
        if self._grad is not None:
            self._grad.index_put_(self._places(ids), grad, accumulate=True)

    def close(self) -> None:
        """No gradient was kept."""

    def _places(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices that broadcast to ``[n, K, length]``."""
        row = torch.arange(self._rows.start, self._rows.stop, device=ids.device)
        return self._utterances.view(-1, 1, 1), row, ids.unsqueeze(2)
