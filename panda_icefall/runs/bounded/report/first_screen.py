"""The first screen of a report: did it hold, what did it cost, what was run on what."""

from collections.abc import Mapping
from typing import Any, Optional

from panda_icefall.runs.bounded.report import units
from panda_icefall.runs.bounded.report.blocks import Table, Verdict
from panda_icefall.runs.bounded.report.reading import (
    Arm,
    absence,
    comparable_arms,
    finite,
    items,
    mapping,
    number,
    read_arm,
)

__all__ = ["facts", "headline", "reason_details", "state", "verdicts"]

_EXPECTED_VERDICTS = (
    "contract",
    "pruned loss",
    "trajectory",
    "final parameters",
    "finite",
    "resume",
)
_RUNNING = (
    "This report is rewritten after every stage. If no process of the run is left, it was killed, "
    "and this partial report is what it left."
)


def verdicts(content: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """The answers given, then, unless the run is complete, the questions still without one."""
    given = [
        Verdict(str(v.get("name")), _yes_or_no(v.get("holds")), str(v.get("text") or ""))
        for v in items(content.get("verdicts"))
    ]
    if content.get("state") == "complete":
        return tuple(given)
    names = {verdict.name for verdict in given}
    waiting = [Verdict(n, None, absence(content)) for n in _EXPECTED_VERDICTS if n not in names]
    return (*given, *waiting)


def state(content: Mapping[str, Any], answers: tuple[Verdict, ...]) -> tuple[str, str, str]:
    """Label, tone and sentence of the banner."""
    name = str(content.get("state") or "state not recorded")
    violated = [verdict.name for verdict in answers if verdict.holds is False]
    # An incomplete run has not passed either way; only a verdict can say that it is violated.
    has_failed = bool(violated) or (name == "complete" and content.get("passed") is False)
    counted = _counted(answers, violated)
    if name == "complete":
        if has_failed:
            return "VIOLATED", "bad", counted
        if content.get("passed") is True:
            return "HOLDS", "good", counted
        return "COMPLETE, NOT JUDGED", "open", counted
    tone = "bad" if has_failed else ("partial" if name == "partial" else "open")
    label = name.upper() + (", VIOLATED" if has_failed else "")
    reason = _reason(content)[0].rstrip(".")
    if name == "partial":
        reason = reason or "no reason was recorded"
        if reason.endswith(":"):  # its other lines stand right below
            return label, tone, f"{counted} {reason}"
        return label, tone, f"{reason}. {counted}"
    return label, tone, (f"{reason}. " if reason else "") + f"{_RUNNING} {counted}"


def reason_details(content: Mapping[str, Any]) -> Optional[str]:
    """What the reason says below its first line, as the end of a log; ``None`` without that."""
    return "\n".join(_reason(content)[1:]) or None


def headline(content: Mapping[str, Any]) -> Optional[Table]:
    """Memory, time and loss of both arms over the steps that both have."""
    arms = comparable_arms(content)
    if not arms:
        return None
    dense, routed = arms.get("dense"), arms.get("routed")
    steps = {name: len(arm.steps) for name in arms if (arm := read_arm(content, name))}
    last = next(iter(arms.values())).steps[-1].step
    caption = f"Over {last} training steps; the median time leaves out the first."
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in steps.items())
        caption = f"Over the {last} training steps that both runs have ({told}); " + (
            "the median time leaves out the first."
        )
    kind = next(iter(arms.values())).memory_kind
    cells = [_cells(dense), _cells(routed)]
    names = (f"peak memory ({kind})", "above the memory before step 1", "median time per step")
    rows = [
        (name, text(of_dense), text(of_routed), units.ratio(of_routed, of_dense))
        for name, text, of_dense, of_routed in zip(
            names, (units.mib, units.mib, units.seconds), *cells
        )
        if of_dense is not None or of_routed is not None
    ]
    rows[1:1] = _losses_row(dense, routed)
    rows.append(_loss_row(dense, routed, last))
    return Table(("", "dense", "routed", "routed / dense"), tuple(rows), caption)


def facts(content: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Machine, data, commit, versions and time, those that are known."""
    versions, data = mapping(content.get("versions")), mapping(content.get("data"))
    machine = [str(versions.pop(n)) for n in ("device_name", "device") if versions.get(n)]
    if versions.get("threads"):
        machine.append(f"{versions.pop('threads')} threads")
    classes = finite(data.get("classes"))
    told = [
        ("machine", ", ".join(machine)),
        ("data", _data(data)),
        ("classes C", units.count(classes) if classes else ""),
        ("icefall", str(versions.pop("icefall", "") or "")),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v not in (None, ""))),
        ("started", str(content.get("started") or "").replace("T", " ")),
        ("took", units.duration(finite(content.get("seconds"))) if content.get("seconds") else ""),
        ("configuration", str(content.get("config_path") or "")),
        ("PANDA", _panda(content)),
    ]
    return tuple((name, text) for name, text in told if text)


def _reason(content: Mapping[str, Any]) -> list[str]:
    return str(content.get("reason") or "").strip().splitlines() or [""]


def _yes_or_no(value: Any) -> Optional[bool]:
    return value if isinstance(value, bool) else None


def _counted(answers: tuple[Verdict, ...], violated: list[str]) -> str:
    if not any(verdict.holds is not None for verdict in answers):
        return "Nothing was judged."
    held = sum(verdict.holds is True for verdict in answers)
    text = f"{held} of {len(answers)} verdicts hold"
    if violated:
        text += f", violated: {', '.join(violated)}"
    open_ = sum(verdict.holds is None for verdict in answers)
    return text + (f", not judged: {open_}." if open_ else ".")


def _cells(arm: Optional[Arm]) -> tuple[Optional[float], Optional[float], Optional[float]]:
    if arm is None:
        return None, None, None
    peak, base = arm.peak_bytes, arm.base_bytes
    above = peak - base if peak is not None and base is not None else None
    return peak, above, arm.median_seconds


def _losses_row(dense: Optional[Arm], routed: Optional[Arm]) -> list[tuple[str, str, str, str]]:
    """What the losses add to the memory, and its share of the peak; no row where not measured."""
    added = [None if arm is None else arm.losses_bytes for arm in (dense, routed)]
    if added == [None, None]:
        return []

    def cell(arm: Optional[Arm], value: Optional[float]) -> str:
        has_share = arm is not None and arm.peak_bytes and value is not None
        return units.mib(value) + (f" ({value / arm.peak_bytes:.0%})" if has_share else "")  # type: ignore

    name = "added by the losses in forward (share of the peak)"
    of_dense, of_routed = added
    ratio = units.ratio(of_routed, of_dense)
    return [(name, cell(dense, of_dense), cell(routed, of_routed), ratio)]


def _loss_row(dense: Optional[Arm], routed: Optional[Arm], last: int) -> tuple[str, str, str, str]:
    losses = [None if arm is None else arm.steps[-1].loss for arm in (dense, routed)]
    apart = units.NOTHING
    first, second = losses
    if first is not None and second is not None and first:
        apart = f"difference {units.distance(number(abs(second - first) / abs(first)))}"
    return (f"loss per frame, step {last}", units.loss(first), units.loss(second), apart)


def _panda(content: Mapping[str, Any]) -> str:
    """In which processes PANDA was on, and with which options."""
    arms = {
        name: arm
        for name in mapping(content.get("arms"))
        if (arm := read_arm(content, name)) is not None and arm.options
    }
    on = [name for name, arm in arms.items() if arm.options.get("use_panda")]
    if not on:
        return f"off in {', '.join(arms)}" if arms else ""
    options = arms[on[0]].options
    mib, tolerance = options.get("workspace_mib"), options.get("adjoint_tolerance")
    told = [
        "workspace " + ("chosen by the device" if mib is None else f"{mib:g} MiB"),
        "adjoint tolerance " + ("by default" if tolerance is None else f"{tolerance:g}"),
        f"engine {options.get('engine')}",
    ]
    off = [name for name in arms if name not in on]
    return f"on in {', '.join(on)}; {', '.join(told)}" + (f"; off in {', '.join(off)}" * bool(off))


def _data(data: Mapping[str, Any]) -> str:
    kinds = {"synthetic": "synthetic (made by panda-icefall synth)", "given": "given by the user"}
    kind = kinds.get(str(data.get("kind")), str(data.get("kind") or ""))
    return ", ".join(text for text in (kind, str(data.get("folder") or "")) if text)
