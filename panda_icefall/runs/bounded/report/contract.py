"""The contract's distances as rows over updates, each row with the bound it is judged by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from panda_icefall.runs.bounded.report.reading import finite, items, mapping, number

__all__ = ["Cell", "ContractRow", "contract_rows"]


@dataclass(frozen=True)
class Cell:
    """One distance of one update.

    Attributes:
      value: The distance; may be NaN or infinite; ``None`` where it was not compared.
      is_negligible: The dense norm is rounding noise, so the relative distance means nothing.
      bound: The largest distance that is no violation, where one is known.
    """

    value: Optional[float] = None
    is_negligible: bool = False
    bound: Optional[float] = None


@dataclass(frozen=True)
class ContractRow:
    """One compared quantity.

    Attributes:
      name: What is compared.
      is_gradient: It is a parameter group's gradient.
      bound: The configured bound, where one is known; of a gradient that rounding alone moves
        further, the bound of its cell is larger.
      cells: One for each update.
    """

    name: str
    is_gradient: bool
    bound: Optional[float]
    cells: tuple[Cell, ...]


def contract_rows(contract: Any) -> tuple[tuple[str, ...], tuple[ContractRow, ...]]:
    """Names of the updates, and the rows: losses, log-probs, ``log_z``, then the gradients.

    Args:
      contract: What ``panda-check.json`` holds, or nothing.
    """
    content = mapping(contract)
    batches = items(content.get("batches"))
    bounds = mapping(content.get("tolerances"))
    updates = tuple(str(b.get("update", index)) for index, b in enumerate(batches, start=1))
    rows = []
    losses = tuple(Cell(number(batch.get("loss_rel"))) for batch in batches)
    if any(cell.value is not None for cell in losses):
        rows.append(ContractRow("loss", False, finite(bounds.get("loss_rel")), losses))
    for key, name, distance, bound in (
        ("pruned_losses", "pruned loss", "rel_l2", "loss_rel"),
        ("log_probs", "selected log-probs", "rel_l2", "log_prob_rel_l2"),
        ("log_probs", "worst log-prob", "max_scaled", "log_prob_elementwise"),
        ("log_z", "log_z", "rel_l2", "log_z_rel_l2"),
        ("log_z", "worst log_z", "max_scaled", "log_prob_elementwise"),
        ("gradients", "", "rel_l2", "gradient_rel_l2"),
    ):
        rows += _rows_of(batches, key, name, distance, finite(bounds.get(bound)))
    return updates, tuple(rows)


def _rows_of(
    batches: list[dict[str, Any]], key: str, name: str, distance: str, bound: Optional[float]
) -> list[ContractRow]:
    by_update = [
        {str(d.get("group", key)): d for d in items(batch.get(key)) if distance in d}
        for batch in batches
    ]
    groups = list(dict.fromkeys(group for distances in by_update for group in distances))
    is_alone = len(groups) == 1
    return [
        ContractRow(
            name=group if not name else (name if is_alone else f"{name}: {group}"),
            is_gradient=not name,
            bound=bound,
            cells=tuple(
                _cell(distances.get(group), distance, bound if name else _own(batch, group, bound))
                for batch, distances in zip(batches, by_update)
            ),
        )
        for group in groups
    ]


def _own(batch: Mapping[str, Any], group: str, bound: Optional[float]) -> Optional[float]:
    """The bound of a group's gradient in one batch."""
    own = finite(mapping(batch.get("gradient_bounds")).get(group))
    return bound if own is None else own


def _cell(distances: Optional[Mapping[str, Any]], distance: str, bound: Optional[float]) -> Cell:
    if distances is None:
        return Cell()
    is_negligible = distances.get("is_negligible") is True
    return Cell(number(distances.get(distance)), is_negligible, bound)
