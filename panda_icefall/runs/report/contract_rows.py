"""The contract's distances as rows over updates, each row with the bound it is judged by."""

from dataclasses import dataclass

from panda_icefall.runs.contract.result import ContractRecord, Distance

__all__ = ["Cell", "ContractRow", "contract_rows"]

_QUANTITIES = (
    # (attribute of an update, name, attribute of a distance, tolerance); gradients have the names
    # of their groups
    ("pruned_losses", "transducer loss", "rel_l2", "loss_rel"),
    ("log_probs", "selected log-probs", "rel_l2", "log_prob_rel_l2"),
    ("log_probs", "worst log-prob", "max_scaled", "log_prob_elementwise"),
    ("log_z", "log_z", "rel_l2", "log_z_rel_l2"),
    ("log_z", "worst log_z", "max_scaled", "log_prob_elementwise"),
    ("gradients", "", "rel_l2", "gradient_rel_l2"),
)


@dataclass(frozen=True)
class Cell:
    """One distance of one update.

    Attributes:
      value: The distance; may be NaN or infinite; ``None`` where it was not compared.
      is_negligible: The dense norm is rounding noise, so the relative distance means nothing.
      bound: The largest distance that is no violation, where one is known.
    """

    value: float | None = None
    is_negligible: bool = False
    bound: float | None = None


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
    bound: float | None
    cells: tuple[Cell, ...]


def contract_rows(contract: ContractRecord) -> list[ContractRow]:
    """Losses, log-probs and ``log_z``, then the gradients; quantities that were compared only."""
    if not contract.batches:
        return []
    bound = contract.tolerances.get("loss_rel")
    losses = tuple(Cell(batch.loss_rel, bound=bound) for batch in contract.batches)
    rows = [ContractRow("loss", False, bound, losses)]
    for attribute, name, distance, tolerance in _QUANTITIES:
        rows += _rows_of(contract, attribute, name, distance, contract.tolerances.get(tolerance))
    return rows


def _rows_of(
    contract: ContractRecord, attribute: str, name: str, distance: str, bound: float | None
) -> list[ContractRow]:
    by_update: list[dict[str, Distance]] = [
        {d.group: d for d in getattr(batch, attribute) if distance in d.model_fields_set}
        for batch in contract.batches
    ]
    groups = list(dict.fromkeys(group for distances in by_update for group in distances))

    def cell(update: int, group: str) -> Cell:
        found = by_update[update].get(group)
        if found is None:
            return Cell()
        own = {} if name else contract.batches[update].gradient_bounds
        return Cell(getattr(found, distance), found.is_negligible, own.get(group, bound))

    return [
        ContractRow(
            name=group if not name else (name if len(groups) == 1 else f"{name}: {group}"),
            is_gradient=not name,
            bound=bound,
            cells=tuple(cell(update, group) for update in range(len(by_update))),
        )
        for group in groups
    ]
