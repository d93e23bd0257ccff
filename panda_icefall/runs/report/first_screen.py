"""The first screen of a report: did it hold, what did it cost, what was run on what."""

from panda_icefall.runs.report import units
from panda_icefall.runs.report.markdown import code, plain, table
from panda_icefall.runs.run_record import RunRecord, Verdict

__all__ = [
    "DENSE_AND_ROUTED",
    "all_verdicts",
    "closing_lines",
    "facts",
    "first_screen",
    "headline",
    "state",
]

DENSE_AND_ROUTED = (
    "Dense: the transducer losses as the recipe computes them, with the logits of all classes. "
    "Routed: the same losses computed by panda-icefall, without these logits."
)
_TWIN = (
    "Dense twin: a second dense run whose start is perturbed by one ulp; how far it goes from the "
    "first is what rounding alone does."
)

_EXPECTED_VERDICTS = (
    "contract",
    "transducer loss",
    "trajectory",
    "final parameters",
    "finite",
    "resume",
)
_ANSWERS = {
    True: "\N{CHECK MARK} holds",
    False: "\N{BALLOT X} VIOLATED",
    None: "\N{EN DASH} not judged",
}
_DATA = {"synthetic": "synthetic (made by panda-icefall synth)", "given": "given by the user"}
_RUNNING = (
    "This report is rewritten after every stage. If no process of the run is left, it was killed, "
    "and this partial report is what it left."
)


def first_screen(record: RunRecord, label: str, sentence: str) -> list[str]:
    """Everything above the first section.

    Args:
      record: What the run has found.
      label, sentence: From :func:`state`.
    """
    blocks = [f"# {plain(record.title or 'untitled run')}", f"**{label}**: {plain(sentence)}"]
    if details := _reason(record)[1:]:
        blocks.append(code("\n".join(details)))
    blocks.append(plain(f"{DENSE_AND_ROUTED} {_TWIN}"))
    if answers := all_verdicts(record):
        rows = [(_ANSWERS[verdict.holds], verdict.name, verdict.text) for verdict in answers]
        blocks.append(table(("verdict", "of", "value and bound"), rows, is_textual=True))
    if costs := headline(record):
        blocks.append(table(("", "dense", "routed", "routed / dense"), *costs))
    if known := facts(record):
        blocks.append("\n".join(f"- {name}: {plain(text)}" for name, text in known.items()))
    if record.command:
        blocks += ["To repeat this run in a new folder:", code(record.command)]
    if record.continuation and record.state != "complete":
        blocks += ["To continue this run:", code(record.continuation)]
    return blocks


def closing_lines(record: RunRecord) -> list[str]:
    """The last words on a console: memory, speed and loss of both arms, and how the run stands."""
    label, _, sentence = state(record)
    lines = []
    if costs := headline(record):
        rows, caption = costs
        lines = [f"{name}: dense {a}, routed {b}; {apart}" for name, a, b, apart in rows]
        lines.append(caption)
    return [*lines, f"{label}: {sentence}"]


def all_verdicts(record: RunRecord) -> list[Verdict]:
    """The answers given, then, unless the run is complete, the questions still without one."""
    if record.state == "complete":
        return record.verdicts
    given = {verdict.name for verdict in record.verdicts}
    names = [name for name in _EXPECTED_VERDICTS if name not in given]
    waiting = [Verdict(name=name, holds=None, text=record.absence) for name in names]
    return [*record.verdicts, *waiting]


def state(record: RunRecord) -> tuple[str, str, str]:
    """How the run stands.

    Returns:
      A label in capitals, as HOLDS or PARTIAL; its tone (``good``, ``bad``, ``open``, ``partial``);
      and the sentence that it rests on.
    """
    verdicts = all_verdicts(record)
    name = record.state or "state not recorded"
    violated = [verdict.name for verdict in verdicts if verdict.holds is False]
    # An incomplete run has not passed either way; only a verdict can say that it is violated.
    has_failed = bool(violated) or (name == "complete" and record.passed is False)
    counted = _counted(verdicts, violated)
    if name == "complete":
        if has_failed:
            return "VIOLATED", "bad", counted
        if record.passed is True:
            return "HOLDS", "good", counted
        return "COMPLETE, NOT JUDGED", "open", counted
    tone = "bad" if has_failed else ("partial" if name == "partial" else "open")
    label = name.upper() + (", VIOLATED" if has_failed else "")
    reason = _reason(record)[0].rstrip(".")
    if name == "partial":
        reason = reason or "no reason was recorded"
        if reason.endswith(":"):  # its other lines are right below
            return label, tone, f"{counted} {reason}"
        return label, tone, f"{reason}. {counted}"
    return label, tone, (f"{reason}. " if reason else "") + f"{_RUNNING} {counted}"


def headline(record: RunRecord) -> tuple[list[tuple[str, ...]], str] | None:
    """Memory, time and loss of both arms over the steps that both have: rows and a caption."""
    arms = record.comparable
    if not arms:
        return None
    last = next(iter(arms.values())).steps[-1].step
    kind = next(iter(arms.values())).memory_kind
    peaks = record.compare(lambda arm: arm.peak_bytes)
    figures = [
        (f"peak memory ({kind})", units.mib, peaks),
        ("above the memory before step 1", units.mib, record.compare(lambda arm: arm.added_bytes)),
        ("median time per step", units.seconds, record.compare(lambda arm: arm.median_seconds)),
    ]
    rows: list[tuple[str, ...]] = [
        (name, *units.compared(show, *values))
        for name, show, values in figures
        if values != (None, None)
    ]
    added = record.compare(lambda arm: arm.losses_bytes)
    if added != (None, None):
        name = "added by the losses in forward (share of the peak)"
        rows.insert(1, (name, *map(_share, added, peaks), units.ratio(added[1], added[0])))
    dense, routed = record.compare(lambda arm: arm.steps[-1].loss)
    apart = units.NOTHING
    if dense is not None and routed is not None and dense:
        apart = f"difference {units.distance(abs(routed - dense) / abs(dense))}"
    rows.append((f"loss per frame, step {last}", units.loss(dense), units.loss(routed), apart))
    steps = {name: len(record.arms[name].steps) for name in arms}
    if len(set(steps.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in steps.items())
        over = f"Over the {last} training steps that both runs have ({counts})"
    else:
        over = f"Over {last} training steps"
    return rows, f"{over}; the median time leaves out the first."


def facts(record: RunRecord) -> dict[str, str]:
    """Machine, data, commit, versions and time, those that are known."""
    versions, data = dict(record.versions), record.data
    machine = [str(versions.pop(n)) for n in ("device_name", "device") if versions.get(n)]
    # Recipes set the number of threads themselves: those of the bounded run's own process say
    # nothing about the training.
    versions.pop("threads", None)
    threads = {arm.threads for arm in record.trained.values() if arm.threads}
    if threads:
        counts = " or ".join(map(str, sorted(threads)))
        machine.append(f"{counts} thread{'s' * (threads != {1})} in training")
    kind = _DATA.get(data.kind or "", data.kind)
    known = {
        "machine": ", ".join(machine),
        "data": ", ".join(text for text in (kind, data.folder) if text),
        "classes C": units.count(data.classes) if data.classes else "",
        "icefall": str(versions.pop("icefall", "") or ""),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v not in (None, "")),
        "started": (record.started or "").replace("T", " "),
        "took": units.duration(record.seconds) if record.seconds else "",
        "configuration": record.config_path or "",
        "PANDA": _panda(record),
    }
    return {name: text for name, text in known.items() if text}


def _reason(record: RunRecord) -> list[str]:
    return (record.reason or "").strip().splitlines() or [""]


def _counted(answers: list[Verdict], violated: list[str]) -> str:
    if not any(verdict.holds is not None for verdict in answers):
        return "Nothing was judged."
    held = sum(verdict.holds is True for verdict in answers)
    text = f"{held} of {len(answers)} verdicts hold"
    if violated:
        text += f", violated: {', '.join(violated)}"
    open_ = sum(verdict.holds is None for verdict in answers)
    return text + (f", not judged: {open_}." if open_ else ".")


def _share(added: float | None, peak: float | None) -> str:
    return units.mib(added) + (f" ({added / peak:.0%})" if added is not None and peak else "")


def _panda(record: RunRecord) -> str:
    """In which processes PANDA was on, and with which options."""
    options = {name: arm.options for name, arm in record.trained.items() if arm.options}
    on = [name for name, given in options.items() if given.get("use_panda")]
    off = [name for name in options if name not in on]
    is_off = f"off in {', '.join(off)}" if off else ""
    if not on:
        return is_off
    given = options[on[0]]
    mib, tolerance = given.get("workspace_mib"), given.get("adjoint_tolerance")
    settings = [
        "workspace " + ("chosen for the device" if mib is None else f"{mib:g} MiB"),
        "adjoint tolerance " + ("by default" if tolerance is None else f"{tolerance:g}"),
        f"engine {given.get('engine')}",
    ]
    parts = [f"on in {', '.join(on)}", ", ".join(settings), is_off]
    return "; ".join(part for part in parts if part)
