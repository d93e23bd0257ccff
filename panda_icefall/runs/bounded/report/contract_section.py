"""The report's section on the contract: losses by update, and every distance at its worst."""

import math
from collections.abc import Mapping
from typing import Any, Callable, Optional

from panda_icefall.runs.bounded.report import units
from panda_icefall.runs.bounded.report.blocks import Block, Table, Text
from panda_icefall.runs.bounded.report.contract import ContractRow, contract_rows
from panda_icefall.runs.bounded.report.reading import absence, finite, items, mapping, number
from panda_icefall.runs.bounded.verdicts import Leeway

__all__ = ["contract_blocks"]


def contract_blocks(content: Mapping[str, Any]) -> list[Block]:
    """Violations first, then the losses, then the quantities with their bounds."""
    contract = mapping(content.get("contract"))
    if not contract:
        return [Text(f"Contract check: {absence(content)}.")]
    violations = contract.get("violations")
    blocks: list[Block] = [
        Text(f"Violated: {violation}", is_alert=True)
        for violation in (violations if isinstance(violations, list) else [])
    ]
    batches = items(contract.get("batches"))
    if not batches:
        return [*blocks, Text("No batch was compared.")]
    done, planned = len(batches), finite(contract.get("updates"))
    if planned is not None and done < planned:
        blocks.append(Text(f"Only {done} of {planned:.0f} batches were compared.", is_alert=True))
    return [*blocks, _losses(contract, batches), _quantities(contract)]


def _losses(contract: Mapping[str, Any], batches: list[dict[str, Any]]) -> Table:
    rows = tuple(
        (
            str(batch.get("update", index)),
            units.loss(number(batch.get("loss_dense"))),
            units.loss(number(batch.get("loss_routed"))),
            units.distance(number(batch.get("loss_rel"))),
            units.mib(finite(batch.get("peak_bytes_dense"))),
            units.mib(finite(batch.get("peak_bytes_routed"))),
        )
        for index, batch in enumerate(batches, start=1)
    )
    columns = ("batch", "loss, dense", "loss, routed", "relative", "peak, dense", "peak, routed")
    return Table(
        columns,
        rows,
        f"The same batch, parameters and random state, dense and routed, in "
        f"{contract.get('precision') or 'unknown precision'}. Losses are the "
        "recipe's own, before any division; peaks are those of forward and backward above the "
        "arm's start.",
    )


def _quantities(contract: Mapping[str, Any]) -> Table:
    _, rows = contract_rows(contract)
    final, twin = (
        {str(d.get("group")): number(d.get("rel_l2")) for d in items(contract.get(key))}
        for key in ("parameters", "parameters_twin")
    )
    configured = finite(mapping(contract.get("tolerances")).get("parameter_rel_l2"))
    cosines = _least_cosines(contract)
    found = tuple(
        (
            row.name,
            _worst(row),
            _allowed(row),
            cosines.get(row.name, units.NOTHING) if row.is_gradient else units.NOTHING,
            *_updated(row, final, twin, configured),
        )
        for row in rows
    )
    columns = (
        "quantity",
        "worst distance",
        "allowed",
        "least cosine",
        "parameters",
        "allowed",
        "twin",
    )
    return Table(
        columns,
        found,
        "Relative distance, worst over the batches: losses, log-probs, log_z, then the gradient of "
        "each parameter group (rel-L2; noise: the dense gradient is rounding noise "
        "itself, judged in absolute terms). A gradient may be apart by as much as four times "
        "what rounding in the simple loss does to the dense one. Parameters: rel-L2 "
        "after the check's optimizer steps; twin: the same of a dense run whose parameters start "
        "out different in the last bit.",
    )


def _updated(
    row: ContractRow,
    final: Mapping[str, Optional[float]],
    twin: Mapping[str, Optional[float]],
    configured: Optional[float],
) -> tuple[str, str, str]:
    """Distance of a group's updated parameters, the effective bound, and the twin's distance."""
    if not row.is_gradient or final.get(row.name) is None or configured is None:
        return units.NOTHING, units.NOTHING, units.NOTHING
    of_twin = twin.get(row.name)
    bound = Leeway(configured, of_twin).bound
    return tuple(map(units.distance, (final[row.name], bound, of_twin)))  # type: ignore


def _allowed(row: ContractRow) -> str:
    """The effective bound, of the batch where it is largest, and the configured one if less."""
    bounds = [cell.bound for cell in row.cells if cell.bound is not None]
    if row.bound is None or max(bounds, default=row.bound) <= row.bound:
        return units.distance(row.bound)
    return f"{units.distance(max(bounds))}, configured {units.distance(row.bound)}"


def _worst(row: ContractRow) -> str:
    values = [c.value for c in row.cells if c.value is not None and not c.is_negligible]
    if not values:
        is_noise = any(cell.is_negligible for cell in row.cells)
        return "noise" if is_noise else units.NOTHING
    return units.distance(_extreme(values, max))


def _least_cosines(contract: Mapping[str, Any]) -> dict[str, str]:
    cosines: dict[str, list[float]] = {}
    for batch in items(contract.get("batches")):
        for distance in items(batch.get("gradients")):
            cosine = number(distance.get("cosine"))
            if cosine is not None and distance.get("is_negligible") is not True:
                cosines.setdefault(str(distance.get("group")), []).append(cosine)
    return {group: f"{_extreme(values, min):.9f}" for group, values in cosines.items()}


def _extreme(values: list[float], pick: Callable[[list[float]], float]) -> float:
    """Like ``max`` or ``min``, which would drop a NaN that does not come first."""
    return next((value for value in values if math.isnan(value)), pick(values))
