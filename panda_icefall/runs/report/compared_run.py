"""One of the runs that are compared, and the sections of a report that say what each has shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.records import Arm, phases_of
from panda_icefall.runs.report import units
from panda_icefall.runs.report.markdown import plain, table

__all__ = ["ComparedRun", "contracts_of", "facts_of", "gaps_of", "phases_of_runs"]


@dataclass(frozen=True)
class ComparedRun:
    """One run, as far as its files tell.

    Attributes:
      name: What it is called here.
      log: Its memory log; None: it was only checked.
      arm: Its steps.
      header: The first row of the log: when it started, its command, its versions.
      contracts: Its contract check by rank; empty where it had none.
      contract_path: The check's report, that of rank 0.
      has_ended: Its log has a last row; else it was killed, or is still running.
    """

    name: str
    log: Path | None
    arm: Arm
    header: Mapping[str, Any] = field(default_factory=dict)
    contracts: Sequence[ContractRecord] = ()
    contract_path: Path | None = None
    has_ended: bool = True

    @property
    def losses(self) -> str:
        """Whether its losses were routed."""
        if self.log is None:
            return "check only"
        if self.arm.options is None:
            return "not recorded"
        return "routed" if self.arm.options.get("use_panda") else "dense"


def facts_of(run: ComparedRun) -> str:
    """Where a run was read, when it began, and its versions."""
    versions = run.header.get("versions") or {}
    known = [f"{name} {value}" for name, value in versions.items() if value not in (None, "")]
    parts = [
        str(run.contract_path if run.log is None else run.log),
        str(run.header.get("time") or "").replace("T", " "),
        ", ".join(known),
    ]
    return "; ".join(part for part in parts if part)


def phases_of_runs(runs: Sequence[ComparedRun]) -> list[str]:
    """Memory and time by phase, a table."""
    phases = phases_of(run.arm for run in runs)
    if not phases:
        return ["No run measured the phases of its steps."]
    columns = ("phase", *(f"{what}, {run.name}" for what in ("peak", "time") for run in runs))
    rows = [
        (
            phase.replace("_", " "),
            *(units.mib(run.arm.phase_peak_bytes(phase)) for run in runs),
            *(units.seconds(run.arm.phase_seconds(phase)) for run in runs),
        )
        for phase in phases
    ]
    return [table(columns, rows, "Medians over the steps, without the first.")]


def contracts_of(runs: Sequence[ComparedRun]) -> list[str]:
    """What each contract check found, once where several runs share it."""
    names: dict[Path | None, list[str]] = {}
    for run in runs:
        names.setdefault(run.contract_path, []).append(run.name)
    found = {run.contract_path: run.contracts for run in runs}
    return [
        plain(f"{', '.join(names[path])}: {_contract(contracts)}")
        for path, contracts in found.items()
    ]


def _contract(ranks: Sequence[ContractRecord]) -> str:
    if not ranks:
        return "no contract check was found."
    violations = [text for record in ranks for text in record.violations]
    if violations:
        return f"VIOLATED: {'; '.join(violations)}"
    verdict = "holds" if all(record.has_passed for record in ranks) else "is not complete"
    text = f"the contract {verdict} over {len(ranks[0].batches)} batch(es)."
    return f"{text} {ranks[0].compared_with}".rstrip()


def gaps_of(runs: Sequence[ComparedRun]) -> list[str]:
    """What a reader might look for and will not find."""
    lines = ["validation loss and word error rate: a memory log has none of them"]
    for run in runs:
        if run.log is None:
            lines.append(f"{run.name}: everything but the contract: it was not trained")
            continue
        arm = run.arm
        missing = [
            name
            for name, is_there in (
                ("steps", bool(arm.steps)),
                ("losses", any(step.loss is not None for step in arm.steps)),
                ("peak memory", arm.peak_bytes is not None),
                ("memory before the first step", arm.base_bytes is not None),
                ("phases", bool(phases_of([arm]))),
                ("options and versions", bool(run.header)),
                ("the end of its log (it was killed, or is still running)", run.has_ended),
            )
            if not is_there
        ]
        if missing:
            lines.append(f"{run.name}: {', '.join(missing)}")
    return lines
