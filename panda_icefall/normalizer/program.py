"""A joiner as a per-site program: tables gathered row by row, then steps replayed tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Value number ``index`` of a program: its tables first, then its parameters, then steps."""

    index: int


@dataclass(frozen=True)
class RowTable:
    """A compact input of the joiner and the row of it that each site reads.

    Attributes:
      values: ``[R, X]``, e.g. ``am`` flattened to ``[B * T, X]``.
      index: ``[N]`` int64 in ``[0, R)``; None means that site i reads row i (``R == N``).
    """

    values: Tensor
    index: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.dim() != 2:
            raise ValueError(f"values: got shape {tuple(self.values.shape)}, expected [R, X]")
        if self.index is not None and (self.index.dim() != 1 or self.index.dtype != torch.int64):
            raise ValueError(
                f"index: got shape {tuple(self.index.shape)} of {self.index.dtype}, "
                f"expected [N] of torch.int64"
            )

    @property
    def sites(self) -> int:
        return self.values.shape[0] if self.index is None else self.index.shape[0]

    def at(self, position: Tensor) -> RowTable:
        """The table of some of its sites, int64 ``[n]``."""
        index = position if self.index is None else self.index.index_select(0, position)
        return RowTable(self.values, index)


@dataclass(frozen=True)
class Step:
    """One recorded operation on row values.

    Attributes:
      function: called with ``args`` and ``kwargs``, each ``Slot`` replaced by its value; must treat
        every row by itself, ``[n, X] -> [n, width]``, for any n.
      args, kwargs: constants and slots.
      width: last dimension of the result.
      dtype: dtype of the result.
    """

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class RowProgram:
    """The hidden rows ``[N, H]`` of a joiner as a recipe that any subset of sites can replay.

    Attributes:
      tables: at least one; all read by the same N sites.
      parameters: tensors every site shares (weights, biases, broadcast vectors), any shape.
      steps: operations in order; the last one gives the rows. Empty: the first table's rows.
    """

    tables: Sequence[RowTable]
    parameters: Sequence[Tensor] = field(default_factory=tuple)
    steps: Sequence[Step] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.tables:
            raise ValueError("tables: got none, expected at least one RowTable")
        counts = [table.sites for table in self.tables]
        if len(set(counts)) != 1:
            raise ValueError(f"tables: got {counts} sites, expected the same N in each")

    @classmethod
    def of(cls, rows: Tensor | RowProgram) -> RowProgram:
        """The program of rows ``[N, H]`` that exist; a program as it is."""
        if isinstance(rows, RowProgram):
            return rows
        if rows.dim() != 2:
            raise ValueError(f"rows: got shape {tuple(rows.shape)}, expected [N, H]")
        return cls(tables=(RowTable(rows),))

    def then(self, function: Callable[[Tensor], Tensor], *, width: int) -> RowProgram:
        """The program with one more step, whose result has the dtype of the rows."""
        inputs = len(self.tables) + len(self.parameters)
        last = Slot(inputs + len(self.steps) - 1 if self.steps else 0)
        step = Step(function, (last,), {}, width, self.dtype)
        return RowProgram(self.tables, self.parameters, (*self.steps, step))

    def at(self, position: Tensor) -> RowProgram:
        """The program of some of its sites, int64 ``[n]``."""
        tables = [table.at(position) for table in self.tables]
        return RowProgram(tables, self.parameters, self.steps)

    @property
    def sites(self) -> int:
        """N."""
        return self.tables[0].sites

    @property
    def width(self) -> int:
        """H, the last dimension of the rows."""
        return self.steps[-1].width if self.steps else self.tables[0].values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the rows."""
        return self.steps[-1].dtype if self.steps else self.tables[0].values.dtype

    def row_bytes(self) -> int:
        """Bytes of one row's values: what the tables give and what the steps make of it."""
        sizes = [table.values.shape[1] * table.values.element_size() for table in self.tables]
        sizes += [
            step.width * torch.empty((), dtype=step.dtype).element_size() for step in self.steps
        ]
        return sum(sizes)

    def replay(self, rows: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """The hidden rows ``[n, H]`` of the sites whose table rows are given.

        Args:
          rows: per table ``[n, X]``.
          parameters: stand-ins of ``self.parameters``.
        """
        values = [*rows, *parameters]
        for step in self.steps:
            args = [values[a.index] if isinstance(a, Slot) else a for a in step.args]
            kwargs = {
                k: values[a.index] if isinstance(a, Slot) else a for k, a in step.kwargs.items()
            }
            values.append(step.function(*args, **kwargs))
        return values[-1] if self.steps else rows[0]
