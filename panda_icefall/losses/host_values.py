"""What the host has to know of tensors on a device: read in one transfer, and kept for a step."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.cuda_graphs import check_not_captured
from panda_icefall.lattice.validation import boundary_error, is_inside_lattice

__all__ = [
    "Boundary",
    "boundary_of_step",
    "boundary_on_host",
    "check_inside",
    "on_host",
    "remember_step",
    "rows_of",
]

# ``s_begin, t_begin, s_end, t_end`` of each utterance.
Boundary = Sequence[tuple[int, int, int, int]]


def on_host(*tensors: Tensor) -> list[list[int]]:
    """The values of integer and bool tensors of one device, flat, in one device sync.

    Raises:
      RuntimeError: a CUDA graph is being captured.
    """
    check_not_captured("a transducer loss of PANDA's")
    if not tensors:
        return []
    values = iter(torch.cat([tensor.reshape(-1).long() for tensor in tensors]).tolist())
    return [list(itertools.islice(values, tensor.numel())) for tensor in tensors]


def rows_of(values: Sequence[int]) -> Boundary:
    """The rows of a boundary that was read flat."""
    fields = iter(values)
    return list(zip(fields, fields, fields, fields))


def check_inside(rows: Boundary, boundary: Tensor, S: int, T: int) -> None:
    """Refuse rows, which are those of ``boundary``, that leave the ``(S, T)`` lattice.

    Raises:
      ValueError: naming the first one.
    """
    if not all(is_inside_lattice(*row, S=S, T=T) for row in rows):
        raise boundary_error(boundary, S, T)


def boundary_on_host(boundary: Tensor, S: int, T: int) -> Boundary:
    """The rows of a boundary that lie in the ``(S, T)`` lattice.

    Args:
      boundary: int64 ``[B, 4]``; ``check_boundary_form`` let it pass.

    Raises:
      ValueError: a row leaves the lattice; it is named.
      RuntimeError: a CUDA graph is being captured.

    One device sync, but none for the boundary of the simple loss that began this step.
    """
    read = _step.read
    if read is not None and read.boundary.is_of(boundary) and (read.S, read.T) == (S, T):
        return read.rows
    rows = rows_of(*on_host(boundary))
    check_inside(rows, boundary, S, T)
    return rows


@dataclass(frozen=True)
class _Unchanged:
    """A tensor, not kept alive, and how often it was changed in place."""

    reference: weakref.ref[Tensor]
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Unchanged:
        return cls(weakref.ref(tensor), tensor._version)

    def is_of(self, tensor: Tensor) -> bool:
        return self.reference() is tensor and tensor._version == self.version


@dataclass(frozen=True)
class _Read:
    """What the simple loss of a step read, for ``(S, T)`` and that many classes."""

    symbols: _Unchanged
    boundary: _Unchanged
    classes: int
    S: int
    T: int
    rows: Boundary


class _Step(threading.local):
    read: _Read | None = None


_step = _Step()


def remember_step(
    symbols: Tensor, boundary: Tensor | None, classes: int, T: int, rows: Boundary
) -> None:
    """Keep what a loss has read, the simple one, for what follows in this thread's step.

    Every simple loss reads its own, so that nothing older than a step is believed.
    """
    _step.read = None
    # Inference tensors do not count their changes.
    if boundary is not None and not (symbols.is_inference() or boundary.is_inference()):
        given = _Unchanged.of(symbols), _Unchanged.of(boundary)
        _step.read = _Read(*given, classes, symbols.shape[1], T, rows)


def boundary_of_step(
    symbols: Tensor, boundary: Tensor | None, classes: int, T: int
) -> Boundary | None:
    """The boundary's rows, where it and the symbols are those that the step's simple loss checked.

    None: they are others, were changed since, or are for another lattice or number of classes.
    """
    read = _step.read
    if read is None or boundary is None or (read.classes, read.T) != (classes, T):
        return None
    return read.rows if read.symbols.is_of(symbols) and read.boundary.is_of(boundary) else None
