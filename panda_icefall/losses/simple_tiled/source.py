"""What the simple loss reads of am and lm, and where their gradients go: a tile at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from panda_icefall.dtypes import WIDE
from panda_icefall.losses.logit_checks import check_fit

Parts = tuple[Tensor | None, ...]
# Class ids, int64 [n, K], the first class of the tile, and values [n, K, length].
Selected = tuple[Tensor, int, Tensor]
# Classes: of so many numbers rows begin at addresses that GEMMs and row kernels read in full width.
ALIGNMENT = 64


@dataclass(frozen=True)
class LogitSource(ABC):
    """Unnormalised log-probs ``[B, R, C]`` of R frames or states, and a scratch to compute them in.

    Attributes:
      parts: the tensors that autograd knows.
      dtype: dtype of the arithmetic, float32 or float64.
      device: where all of it lies.
      rows: R.
      classes: C.
      width: numbers of scratch that one row takes besides its classes.
      casts_weight: whether a tile of classes is cast before it is used.
      copy_bytes: for each class, of the copies of weight and bias that are read in their place.
      gradient_dtype: dtype of the tiles that ``LogitBlock.add`` takes; None: the arithmetic's.
      merges_selected: whether these tiles hold the gradient of the selected classes too, and
        ``add_at`` is not called. Where tiles are rounded, what is left of the two where they cancel
        would be lost otherwise.
    """

    parts: Parts
    dtype: torch.dtype
    device: torch.device
    rows: int
    classes: int
    width: int = 0
    casts_weight: bool = False
    copy_bytes: int = 0
    gradient_dtype: torch.dtype | None = None
    merges_selected: bool = False
    _scratch: dict[str, Tensor] = field(default_factory=dict)

    @property
    @abstractmethod
    def remake(self) -> Callable[[Sequence[Tensor | None]], LogitSource]:
        """From parts to such a source, without a reference to this one's."""

    def copying_by_tile(self) -> LogitSource:
        """The source with copies for one tile of classes at a time, where it makes any."""
        return self

    @abstractmethod
    def open(self, utterances: Tensor, rows: slice, grads: Parts | None = None) -> LogitBlock:
        """Some rows of some utterances.

        Args:
          utterances: int64 ``[n]``, all different.
          rows: the same ``length`` neighbours of each; begin and end are given.
          grads: where gradients are added, as from ``zeros_of_parts``; None reads only.
        """

    def zeros_of_parts(self, needs: Sequence[bool]) -> Parts:
        """Gradients of the parts to add to, in the arithmetic's dtype; None where not needed."""
        return tuple(
            self.full(*part.shape) if part is not None and need else None
            for part, need in zip(self.parts, needs)
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``[B, R, C]``."""
        first = self.parts[0]
        assert first is not None
        return first.shape[0], self.rows, self.classes

    @property
    def all_rows(self) -> slice:
        return slice(0, self.rows)

    def full(self, *shape: int, value: float = 0.0) -> Tensor:
        """A new tensor of the arithmetic's dtype."""
        return torch.full(shape, value, dtype=self.dtype, device=self.device)

    def buffer(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tile, on the memory of the last one of this name where it fits.

        Args:
          shape: ``[n, length, c]``. On CUDA the stride of rows is a multiple of ``ALIGNMENT``,
            where there are more classes.
          dtype: None: the arithmetic's.
        """
        n, length, classes = shape
        stride = aligned(classes) if self.pads_rows else classes
        size = n * length * stride
        if name not in self._scratch or self._scratch[name].numel() < size:
            self._scratch.pop(name, None)
            self._scratch[name] = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
        return self._scratch[name][:size].view(n, length, stride)[:, :, :classes]

    def gradient_tile(self, grad: Tensor) -> Tensor:
        """Where a tile's gradient is written: itself, or a buffer of ``gradient_dtype``."""
        if not self.rounds_gradient:
            return grad
        return self.buffer("rounded", grad.shape, self.gradient_dtype)

    @property
    def rounds_gradient(self) -> bool:
        """Whether ``gradient_dtype`` is narrower than the arithmetic's."""
        return self.gradient_dtype not in (None, self.dtype)

    @property
    def pads_rows(self) -> bool:
        """Whether rows of a ragged tile begin where those of a full one would."""
        return self.device.type == "cuda"

    def release(self) -> None:
        """Give the buffers back."""
        self._scratch.clear()


class LogitBlock(ABC):
    """Rows ``[n, length]`` of a source, read and differentiated by classes."""

    @abstractmethod
    def tile(self, low: int, high: int) -> Tensor:
        """``[n, length, high - low]``, classes ``[low, high)``, in the source's buffer "tile"."""

    def bias(self, low: int, high: int) -> Tensor | None:
        """What is still to be added to the tile, ``[high - low]``; None: nothing."""
        return None

    @abstractmethod
    def at(self, ids: Tensor) -> Tensor:
        """``[n, K, length]``, all rows at the classes ``ids``, int64 ``[n, K]``."""

    @abstractmethod
    def add(self, grad: Tensor, low: int, high: int) -> None:
        """Add the gradient ``[n, length, high - low]`` of a tile, in ``gradient_dtype``."""

    @abstractmethod
    def add_at(self, ids: Tensor, grad: Tensor) -> None:
        """Add the gradient ``[n, K, length]`` of ``at``; classes may repeat."""

    @abstractmethod
    def close(self) -> None:
        """Add the gradients that were kept until the last tile."""


def aligned(classes: int) -> int:
    """Classes rounded up to a multiple of ``ALIGNMENT``, where they are more."""
    return classes if classes <= ALIGNMENT else -(-classes // ALIGNMENT) * ALIGNMENT


def check_sources(am: LogitSource, lm: LogitSource, symbols: Tensor) -> None:
    """Refuse sources that do not fit each other or the symbols.

    Args:
      am, lm: of ``[B, T, C]`` and ``[B, S+1, C]``; the parts of each fit each other.
      symbols: ``[B, S]``.

    Raises:
      ValueError: a shape or a device.
      TypeError: a dtype.
    """
    if am.dtype not in WIDE:
        raise TypeError(
            f"am: got {am.dtype}, expected torch.float32 or torch.float64; pass am.float()"
        )
    if lm.dtype != am.dtype:
        raise TypeError(f"lm: got {lm.dtype}, expected am's {am.dtype}; convert one of them")
    for name, device in (("lm", lm.device), ("symbols", symbols.device)):
        if device != am.device:
            raise ValueError(f"{name}: got device {device}, expected am's {am.device}")
    if 0 in am.shape[1:]:
        raise ValueError(f"am: got shape {am.shape}, expected [B, T, C], T, C >= 1")
    check_fit(lm.shape, am.shape, symbols)
