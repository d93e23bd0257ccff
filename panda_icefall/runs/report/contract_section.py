"""The report's section on the contract: losses by update, and every distance at its worst."""

from panda_icefall.runs.contract.leeway import Leeway
from panda_icefall.runs.records import ContractRecord, nan_last
from panda_icefall.runs.report import units
from panda_icefall.runs.report.contract_rows import ContractRow, contract_rows
from panda_icefall.runs.report.markdown import alert, table
from panda_icefall.runs.run_record import RunRecord

__all__ = ["contract_section"]


def contract_section(record: RunRecord) -> list[str]:
    """Violations first, then the losses, then the quantities with their bounds."""
    contract = record.contract
    if contract is None:
        return [f"Contract check: {record.absence}."]
    blocks = [alert(f"Violated: {violation}") for violation in contract.violations]
    done = len(contract.batches)
    if not done:
        return [*blocks, "No batch was compared."]
    if done < contract.updates:
        blocks.append(alert(f"Only {done} of {contract.updates} batches were compared."))
    return [*blocks, _losses(contract), _quantities(contract)]


def _losses(contract: ContractRecord) -> str:
    return table(
        ("batch", "loss, dense", "loss, routed", "relative", "peak, dense", "peak, routed"),
        [
            (
                str(batch.update),
                units.loss(batch.loss_dense),
                units.loss(batch.loss_routed),
                units.distance(batch.loss_rel),
                units.mib(batch.peak_bytes_dense),
                units.mib(batch.peak_bytes_routed),
            )
            for batch in contract.batches
        ],
        f"The same batch, parameters and random state, dense and routed, in "
        f"{contract.precision or 'unknown precision'}. Losses are the "
        "recipe's own, before any division; peaks are those of forward and backward above the "
        "arm's start.",
    )


def _quantities(contract: ContractRecord) -> str:
    cosines: dict[str, list[float]] = {}
    for batch in contract.batches:
        for gradient in batch.judged_gradients:
            cosines.setdefault(gradient.group, []).append(gradient.cosine)
    rows = []
    for row in contract_rows(contract):
        least = units.NOTHING
        if row.is_gradient and row.name in cosines:
            least = f"{min(cosines[row.name], key=lambda value: -nan_last(-value)):.9f}"
        rows.append((row.name, _worst(row), _allowed(row), least, *_updated(row, contract)))
    return table(
        (
            "quantity",
            "worst distance",
            "allowed",
            "least cosine",
            "parameters",
            "allowed",
            "twin",
        ),
        rows,
        "Relative distance, worst over the batches: losses, log-probs, log_z, then the gradient of "
        "each parameter group (rel-L2; noise: the dense gradient is rounding noise "
        "itself, judged in absolute terms). A gradient may be apart by as much as four times "
        "what rounding in the simple loss does to the dense one. Parameters: rel-L2 "
        "after the check's optimizer steps; twin: the same of a dense run whose start is perturbed "
        "by one ulp and whose simple losses round differently.",
    )


def _updated(row: ContractRow, contract: ContractRecord) -> tuple[str, str, str]:
    """Distance of a group's updated parameters, the effective bound, and the twin's distance."""
    final = {d.group: d.rel_l2 for d in contract.parameters}
    configured = contract.tolerances.get("parameter_rel_l2")
    if not row.is_gradient or row.name not in final or configured is None:
        return units.NOTHING, units.NOTHING, units.NOTHING
    twin = {d.group: d.rel_l2 for d in contract.parameters_twin}.get(row.name)
    bound = Leeway(configured, twin).bound
    return units.distance(final[row.name]), units.distance(bound), units.distance(twin)


def _allowed(row: ContractRow) -> str:
    """The effective bound, of the batch where it is largest, and the configured one if less."""
    bounds = [cell.bound for cell in row.cells if cell.bound is not None]
    if row.bound is None or max(bounds, default=row.bound) <= row.bound:
        return units.distance(row.bound)
    return f"{units.distance(max(bounds))}, configured {units.distance(row.bound)}"


def _worst(row: ContractRow) -> str:
    values = [c.value for c in row.cells if c.value is not None and not c.is_negligible]
    if values:
        return units.distance(max(values, key=nan_last))
    return "noise" if any(cell.is_negligible for cell in row.cells) else units.NOTHING
