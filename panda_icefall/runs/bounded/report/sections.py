"""The sections of a report below its first screen."""

import math
from collections.abc import Mapping
from typing import Any, Optional

import yaml

from panda_icefall.runs.bounded.report import units
from panda_icefall.runs.bounded.report.blocks import Block, Code, Section, Table, Text
from panda_icefall.runs.bounded.report.reading import (
    absence,
    comparable_arms,
    finite,
    items,
    mapping,
    number,
    phases_of,
    read_arm,
)

__all__ = ["configuration", "final_parameters", "memory", "resume", "routing", "stages", "training"]

ARMS = ("dense", "routed", "twin", "stopped", "resumed")
TWIN = "The twin is a second dense run whose parameters start out different in the last bit"


def training(content: Mapping[str, Any]) -> list[Block]:
    """How far the loss of the routed run, and of the twin, goes from the dense one."""
    found = mapping(content.get("trajectory"))
    if not found:
        return [Text(f"Comparison of the losses: {absence(content)}.")]
    at = finite(found.get("step_of_largest"))
    rows = [
        ("steps compared", units.count(finite(found.get("steps")))),
        (
            "largest relative difference of the loss, routed",
            units.distance(number(found.get("largest_relative_difference")))
            + (f" (step {at:.0f})" if at is not None else ""),
        ),
        (
            "the same of the dense twin",
            units.distance(number(found.get("twin_largest_relative_difference"))),
        ),
        ("the difference's bound", str(found.get("allowed") or units.NOTHING)),
        ("losses that are NaN or infinite", units.count(finite(found.get("non_finite")))),
    ]
    caption = f"Loss trajectories. {TWIN}: it shows what rounding alone does."
    return [Table(("", "figure"), tuple(rows), caption)]


def memory(content: Mapping[str, Any]) -> list[Block]:
    """Peak and time of every phase, dense and routed."""
    arms = comparable_arms(content)
    dense, routed = arms.get("dense"), arms.get("routed")
    rows = []
    for phase in phases_of(arms.values()):
        peaks = [None if arm is None else arm.phase_peak_bytes(phase) for arm in (dense, routed)]
        times = [None if arm is None else arm.phase_seconds(phase) for arm in (dense, routed)]
        if any(value is not None for value in peaks + times):
            rows.append(
                (
                    phase.replace("_", " "),
                    *map(units.mib, peaks),
                    units.ratio(peaks[1], peaks[0]),
                    *map(units.seconds, times),
                    units.ratio(times[1], times[0]),
                )
            )
    if not rows:
        return []
    header = (
        "phase",
        "peak, dense",
        "peak, routed",
        "ratio",
        "time, dense",
        "time, routed",
        "ratio",
    )
    caption = "Medians over the steps that both have, without the first. Ratio: routed over dense."
    return [Table(header, tuple(rows), caption)]


def final_parameters(content: Mapping[str, Any]) -> list[Block]:
    """Distance of the final parameters, as a whole, by group, and where most of it sits."""
    found = mapping(content.get("final_parameters"))
    if not found:
        return [Text(f"Comparison of the parameters: {absence(content)}.")]
    total = (
        "all parameters",
        units.distance(number(found.get("rel_l2"))),
        units.distance(number(found.get("twin_rel_l2"))),
        units.NOTHING,
    )
    bulk = (
        "the bulk: without the 0.001 % of elements furthest apart",
        units.distance(number(found.get("bulk_rel_l2"))),
        units.distance(number(found.get("twin_bulk_rel_l2"))),
        units.NOTHING,
    )
    groups = [
        (
            str(group.get("group")),
            units.distance(number(group.get("rel_l2"))),
            units.distance(number(group.get("twin_rel_l2"))),
            units.distance(number(group.get("max_abs"))),
        )
        for group in items(found.get("groups"))
    ]
    caption = "Distance from the dense run's parameters after the last step. " + (
        f"The bulk's rel-L2: {found['allowed']}. " if found.get("allowed") else ""
    )
    columns = ("group", "rel-L2, routed", "rel-L2, twin", "max-abs, routed")
    blocks: list[Block] = [Table(columns, (total, bulk, *groups), f"{caption}{TWIN}.")]
    largest = [
        (
            str(parameter.get("name")),
            _percent(finite(parameter.get("share"))),
            units.distance(number(parameter.get("rel_l2"))),
            units.distance(number(parameter.get("twin_rel_l2"))),
        )
        for parameter in items(found.get("largest_parameters"))
    ]
    if largest:
        header = ("parameter", "share of the squared difference", "rel-L2, routed", "rel-L2, twin")
        blocks.append(Table(header, tuple(largest), "Where most of the difference sits."))
    return blocks


def resume(content: Mapping[str, Any]) -> list[Block]:
    """What stopping and resuming changed."""
    found = mapping(content.get("resume"))
    if not found:
        return [Text(f"Stopped and resumed run: {absence(content)}.")]
    stopped, steps = finite(found.get("stopped_after")), finite(found.get("steps"))
    if found.get("is_bitwise") is True:
        same = "the same bits as"
    else:
        same = f"at rel-L2 {units.distance(number(found.get('rel_l2')))} from"
    return [
        Text(
            f"Stopped after step {units.count(stopped)}, resumed from the recipe's own checkpoint, "
            f"ended after step {units.count(steps)}: the parameters are {same} those of the run "
            "without a stop."
        )
    ]


def routing(content: Mapping[str, Any]) -> list[Block]:
    """What routing counted in every arm."""
    arms = [(name, read_arm(content, name)) for name in ARMS]
    counted = [(name, arm.counters) for name, arm in arms if arm is not None and arm.counters]
    if not counted:
        return [Text("No process has counted anything.")]
    names = list(dict.fromkeys(key for _, counters in counted for key in counters))
    rows = [
        (name.replace("_", " "), *(_counter(counters.get(name)) for _, counters in counted))
        for name in names
    ]
    return [
        Table(
            ("counter", *(name for name, _ in counted)),
            tuple(rows),
            "Sites: lattice sites offered to the routed loss, evaluated forward (inside the "
            "boundary) and backward. Materialised: operations that could not be recorded.",
        )
    ]


def stages(content: Mapping[str, Any]) -> list[Block]:
    """Every process that the run started, and its command."""
    found = items(content.get("stages"))
    if not found:
        return [Text("No stage was started.")]
    rows = tuple(
        (
            str(stage.get("name")),
            str(stage.get("state")),
            units.duration(finite(stage.get("seconds"))),
            units.NOTHING if stage.get("exit_status") is None else str(stage["exit_status"]),
            str(stage.get("log") or units.NOTHING),
        )
        for stage in found
    )
    columns = ("stage", "state", "time", "exit status", "log")
    commands = "\n".join(f"# {s.get('name')}\n{s['command']}" for s in found if s.get("command"))
    table = Table(columns, rows, "The processes of this run, in order.", is_textual=True)
    return [table, *([Code(commands)] if commands else [])]


def configuration(content: Mapping[str, Any]) -> Optional[Section]:
    """The configuration as it was read."""
    config = mapping(content.get("config"))
    if not config:
        return None
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=88)
    return Section("Configuration", (Code(text.rstrip("\n")),))


def _percent(share: Optional[float]) -> str:
    return units.NOTHING if share is None else f"{100 * share:.1f} %"


def _counter(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {times}" for name, times in value.items()) or "none"
    read = number(value)
    if read is None:
        return units.NOTHING if value is None else str(value)
    return units.count(read) if math.isfinite(read) and read == int(read) else f"{read:.4g}"
