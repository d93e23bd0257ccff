"""The sections of a report below its first screen, as blocks of Markdown."""

from collections.abc import Iterable
from functools import partial

import yaml

from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.records import Arm, nan_first, nan_last, phases_of
from panda_icefall.runs.report import units
from panda_icefall.runs.report.contract_rows import ContractRow, contract_rows
from panda_icefall.runs.report.markdown import alert, code, table
from panda_icefall.runs.run_record import RunRecord

__all__ = [
    "configuration",
    "contract",
    "final_parameters",
    "memory",
    "resume",
    "routing",
    "stages",
    "training",
]

_TWIN = "The twin is a second dense run whose start is perturbed by one ulp"


def training(record: RunRecord) -> list[str]:
    """How far the loss of the routed run, and of the twin, goes from the dense one."""
    found = record.trajectory
    if found is None:
        return [f"Comparison of the losses: {record.absence}."]
    largest = units.distance(found.largest_relative_difference)
    if found.step_of_largest is not None:
        largest += f" (step {found.step_of_largest})"
    rows = [
        ("steps compared", units.count(found.steps)),
        ("largest relative difference of the loss, routed", largest),
        (
            "relative difference in the first step, routed",
            units.distance(found.first_relative_difference),
        ),
        ("the same of the dense twin", units.distance(found.twin_largest_relative_difference)),
        ("the difference's bound", found.allowed or units.NOTHING),
        ("losses that are NaN or infinite", units.count(found.non_finite)),
    ]
    caption = f"Loss trajectories. {_TWIN}: it shows what rounding alone does."
    return [table(("", "figure"), rows, caption)]


def memory(record: RunRecord) -> list[str]:
    """Peak and time of every phase, dense and routed."""
    rows = []
    for phase in phases_of(record.comparable.values()):
        peaks = record.compare(partial(Arm.phase_peak_bytes, phase=phase))
        times = record.compare(partial(Arm.phase_seconds, phase=phase))
        costs = (*units.compared(units.mib, *peaks), *units.compared(units.seconds, *times))
        rows.append((phase.replace("_", " "), *costs))
    if not rows:
        return []
    measured = ("peak, dense", "peak, routed", "ratio", "time, dense", "time, routed", "ratio")
    caption = "Medians over the steps that both have, without the first. Ratio: routed over dense."
    return [table(("phase", *measured), rows, caption)]


def contract(record: RunRecord) -> list[str]:
    """Violations first, then the losses, then the quantities with their bounds."""
    found = record.contract
    if found is None:
        return [f"Contract check: {record.absence}."]
    blocks = [alert(f"Violated: {violation}") for violation in found.violations]
    done = len(found.batches)
    if not done:
        return [*blocks, "No batch was compared."]
    if done < found.updates:
        blocks.append(alert(f"Only {done} of {found.updates} batches were compared."))
    return [*blocks, _losses(found), _quantities(found)]


def _losses(found: ContractRecord) -> str:
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
            for batch in found.batches
        ],
        f"The same batch, parameters and random state, dense and routed, in "
        f"{found.precision or 'unknown precision'}. Losses are the "
        "recipe's own, before any division; peaks are those of forward and backward above the "
        f"arm's start. {found.compared_with}".rstrip(),
    )


def _quantities(found: ContractRecord) -> str:
    judged = [gradient for batch in found.batches for gradient in batch.judged_gradients]
    rows = []
    for row in contract_rows(found):
        cosines = [g.cosine for g in judged if row.is_gradient and g.group == row.name]
        least = f"{min(cosines, key=nan_first):.9f}" if cosines else units.NOTHING
        rows.append((row.name, _worst(row), _allowed(row), least, *_updated(row, found)))
    return table(
        tuple("quantity,worst distance,allowed,least cosine,parameters,allowed,twin".split(",")),
        rows,
        "Relative distance, worst over the batches: losses, log-probs, log_z, then the gradient of "
        "each parameter group (rel-L2; noise: the dense gradient is rounding noise "
        "itself, judged in absolute terms). A gradient may differ by up to four times what "
        "rounding in the loss alone does to the dense one. Parameters: rel-L2 after the check's "
        "optimizer steps; twin: the same for a dense run whose start is perturbed by one ulp and "
        "whose simple losses round differently.",
    )


def _updated(row: ContractRow, found: ContractRecord) -> Iterable[str]:
    """Distance of a group's updated parameters, the effective bound, and the twin's distance."""
    final = {d.group: d.rel_l2 for d in found.parameters}
    if not row.is_gradient or row.name not in final or "parameter_rel_l2" not in found.tolerances:
        return (units.NOTHING,) * 3
    leeway = found.parameter_leeway(row.name)
    return map(units.distance, (final[row.name], leeway.bound, leeway.twin))


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


def final_parameters(record: RunRecord) -> list[str]:
    """Distance of the final parameters, as a whole, by group, and where most of it sits."""
    found = record.final_parameters
    if found is None:
        return [f"Comparison of the parameters: {record.absence}."]
    bulk = "the bulk: without the 0.001 % of elements that differ most"
    compared = [
        ("all parameters", found.rel_l2, found.twin_rel_l2, None),
        (bulk, found.bulk_rel_l2, found.twin_bulk_rel_l2, None),
        *((g.group, g.rel_l2, g.twin_rel_l2, g.max_abs) for g in found.groups),
    ]
    allowed = f"The bulk's rel-L2: {found.allowed}. " if found.allowed else ""
    caption = f"Distance from the dense run's parameters after the last step. {allowed}{_TWIN}."
    columns = ("group", "rel-L2, routed", "rel-L2, twin", "max-abs, routed")
    rows = [(name, *map(units.distance, distances)) for name, *distances in compared]
    blocks = [table(columns, rows, caption)]
    if found.largest_parameters:
        largest = [
            (
                parameter.name,
                f"{100 * parameter.share:.1f} %",
                units.distance(parameter.rel_l2),
                units.distance(parameter.twin_rel_l2),
            )
            for parameter in found.largest_parameters
        ]
        header = ("parameter", "share of the squared difference", "rel-L2, routed", "rel-L2, twin")
        blocks.append(
            table(header, largest, "The parameters with the largest share of the difference.")
        )
    return blocks


def resume(record: RunRecord) -> list[str]:
    """What stopping and resuming changed."""
    found = record.resume
    if found is None:
        return [f"Stopped and resumed run: {record.absence}."]
    if found.is_bitwise:
        same = "bit-identical to"
    else:
        same = f"at rel-L2 {units.distance(found.rel_l2)} from"
    return [
        f"Stopped after step {units.count(found.stopped_after)}, resumed from the recipe's own "
        f"checkpoint, ended after step {units.count(found.steps)}: the parameters are {same} those "
        "of the uninterrupted run."
    ]


def routing(record: RunRecord) -> list[str]:
    """What routing counted in every arm."""
    counted = {name: arm.by_counter(arm.counters) for name, arm in record.trained.items()}
    if not counted:
        return ["No process counted a loss."]
    rows = [
        (name.replace("_", " "), *(_counter(counters[name]) for counters in counted.values()))
        for name in next(iter(counted.values()))
    ]
    caption = (
        "Sites: lattice sites offered to the routed loss, evaluated forward (inside the "
        "boundary) and backward. Materialised: operations that could not be recorded."
    )
    return [table(("counter", *counted), rows, caption)]


def stages(record: RunRecord) -> list[str]:
    """Every process that the run started, and its command."""
    if not record.stages:
        return ["No stage was started."]
    rows = [
        (
            stage.name,
            stage.state,
            units.duration(stage.seconds),
            units.NOTHING if stage.exit_status is None else str(stage.exit_status),
            stage.log or units.NOTHING,
        )
        for stage in record.stages
    ]
    columns = ("stage", "state", "time", "exit status", "log")
    blocks = [table(columns, rows, "The processes of this run, in order.", is_textual=True)]
    commands = [f"# {stage.name}\n{stage.command}" for stage in record.stages if stage.command]
    return [*blocks, code("\n".join(commands))] if commands else blocks


def configuration(record: RunRecord) -> list[str]:
    """The configuration as it was read."""
    text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True, width=88)
    return [code(text.rstrip("\n"))]


def _counter(value: float | dict[str, int]) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {times}" for name, times in value.items()) or "none"
    return units.count(value) if value == int(value) else f"{value:.4g}"
