"""Checks of ``selected_log_probs``'s arguments, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.cuda_graphs import check_not_captured
from panda_icefall.normalizer.head import RowLogits
from panda_icefall.normalizer.program import RowProgram


@dataclass(frozen=True, eq=False)
class KnownSites:
    """Sites of a call of which the caller has seen to it that ids and table rows are in range.

    Attributes:
      index: int64 ``[n]``, the live ones, ascending; None: all are.
    """

    index: Tensor | None = None

    @classmethod
    def of(cls, live: Tensor, count: int) -> KnownSites:
        """Of a mask, bool ``[N]``, of which ``count`` are True."""
        if count == live.shape[0]:
            return cls()
        # Not nonzero(), which would wait for the device.
        return cls(live.to(torch.uint8).sort(descending=True, stable=True).indices[:count])


def live_sites(
    logits: RowLogits, ids: Tensor, live: Tensor | None, classes: range
) -> Tensor | None:
    """Indices ``[n]`` of the live sites, None for all; checks ids and table rows in the same sync.

    Args:
      classes: those that ids may be of.

    Raises:
      ValueError: a class id or a table row is out of range.
      RuntimeError: a CUDA graph is being captured.
    """
    if logits.rows.sites == 0:
        return None
    check_not_captured("selected_log_probs")
    first = classes.start
    used = ids if live is None else torch.where(live[:, None], ids, torch.full_like(ids, first))
    bounds = [used.min(), used.max(), *_row_bounds(logits.rows)]
    if live is not None:
        bounds.append(live.sum())
    low, high, *others = torch.stack(bounds).tolist()
    if low < first or high >= classes.stop:
        wrong = low if low < first else high
        raise ValueError(
            f"selected_ids: got class {wrong}, expected {first} <= id < {classes.stop}"
        )
    _check_row_bounds(logits.rows, others)
    return None if live is None else KnownSites.of(live, others[-1]).index


def check_rows(program: RowProgram) -> None:
    """Refuse tables that are read at rows that they do not have; one device sync.

    Raises:
      ValueError: naming the first such table by its size.
    """
    bounds = _row_bounds(program) if program.sites else []
    if bounds:
        _check_row_bounds(program, torch.stack(bounds).tolist())


def _row_bounds(program: RowProgram) -> list[Tensor]:
    """The first and the last row of each table with an index that a site reads."""
    indices = [table.index for table in program.tables if table.index is not None]
    return [bound for index in indices for bound in (index.min(), index.max())]


def _check_row_bounds(program: RowProgram, bounds: Sequence[int]) -> None:
    indexed = [t for t in program.tables if t.index is not None]
    for table, first, last in zip(indexed, bounds[::2], bounds[1::2]):
        if first < 0 or last >= table.values.shape[0]:
            raise ValueError(
                f"rows: a table of {table.values.shape[0]} rows is read at "
                f"{first if first < 0 else last}; every index must lie inside the table"
            )


def check_form(logits: RowLogits, ids: Tensor, mask: Tensor | None, live: Tensor | None) -> None:
    """Refuse shapes, dtypes and devices that do not fit together.

    Raises:
      ValueError: a shape or a device.
      TypeError: a dtype.
    """
    program, weight, sites = logits.rows, logits.weight, logits.rows.sites
    if weight is None:
        for name in ("bias", "head_dtype"):
            if getattr(logits, name) is not None:
                raise ValueError(
                    f"{name}: got one without a weight, expected None; add it to the rows"
                )
        if program.width == 0:
            raise ValueError("rows: got 0 columns without a weight, expected C >= 1")
    if ids.dim() != 2 or ids.shape[0] != sites or ids.shape[1] == 0:
        raise ValueError(
            f"selected_ids: got shape {tuple(ids.shape)}, expected [{sites}, K] with K >= 1"
        )
    for name, tensor, shape in (("selected_mask", mask, ids.shape), ("live", live, ids.shape[:1])):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if tensor is not None and tensor.dtype != torch.bool:
            raise TypeError(f"{name}: got {tensor.dtype}, expected torch.bool")
    if ids.dtype != torch.int64:
        raise TypeError(f"selected_ids: got {ids.dtype}, expected torch.int64")
    if not program.dtype.is_floating_point:
        raise TypeError(f"rows: got {program.dtype}, expected a floating point dtype")
    if weight is not None:
        _check_linear(weight, logits)
    rows = program.tables[0].values
    for name, tensor in (("rows", rows), ("selected_ids", ids)):
        device = rows.device if weight is None else weight.device
        if tensor.device != device:
            raise ValueError(f"{name}: got a tensor on {tensor.device}, expected {device}")


def _check_linear(weight: Tensor, logits: RowLogits) -> None:
    width, bias = logits.rows.width, logits.bias
    if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected [C, {width}], C >= 1")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected [{weight.shape[0]}]")
    if logits.head_dtype is None and weight.dtype != logits.rows.dtype:
        raise TypeError(
            f"weight: got {weight.dtype} for rows of {logits.rows.dtype}; "
            f"cast one of them or give head_dtype"
        )
    if bias is not None and not bias.is_floating_point():
        raise TypeError(f"bias: got {bias.dtype}, expected a floating point dtype")
