"""One of the runs that are compared, and the sections of a report that say what each has shown."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.options import PandaOptions, spelt
from panda_icefall.runs.records import Arm, phases_of
from panda_icefall.runs.report import units
from panda_icefall.runs.report.markdown import code, plain, table

__all__ = [
    "ComparedRun",
    "commands_of",
    "contracts_of",
    "facts_of",
    "gaps_of",
    "other_arguments",
    "phases_of_runs",
]

_OF_EACH_RUN = ("--exp-dir",)  # never the same in two runs


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

    @property
    def recipe_words(self) -> list[str]:
        """The recipe's script and its own arguments; empty where they were not recorded."""
        return [str(word) for word in self.header.get("argv") or ()]

    @property
    def panda_words(self) -> list[str]:
        """The options of PANDA that were given."""
        given = self.arm.options or {}
        return [
            word
            for flag, field in PandaOptions.flags().items()
            if given.get(field.name, field.default) != field.default
            for word in (flag, spelt(given[field.name]))
        ]


def other_arguments(run: ComparedRun, reference: ComparedRun) -> list[str]:
    """The recipe's own arguments in which a run differs from another, those of that one as well."""
    if not run.recipe_words or not reference.recipe_words:
        return []
    here, there = _arguments(run.recipe_words), _arguments(reference.recipe_words)
    return [
        f"{name} {here.get(name, 'not given')} (there {there.get(name, 'not given')})"
        for name in {**there, **here}
        if name not in _OF_EACH_RUN and here.get(name) != there.get(name)
    ]


def _arguments(words: Sequence[str]) -> dict[str, str]:
    """The words behind each option, by its name, and those before any as ``script``."""
    found: dict[str, list[str]] = {}
    name = "script"
    for word in words:
        if word.startswith("--"):
            name, has_value, value = word.partition("=")
            found[name] = [value] if has_value else []
        else:
            found.setdefault(name, []).append(word)
    return {name: " ".join(values) or "given" for name, values in found.items()}


def commands_of(runs: Sequence[ComparedRun]) -> list[str]:
    """The command of each run that recorded one, to be read or repeated."""
    lines = [
        f"# {run.name}\n{shlex.join(['panda-icefall', 'run', *run.recipe_words, *run.panda_words])}"
        for run in runs
        if run.recipe_words
    ]
    return [code("\n".join(lines))] if lines else ["No run recorded its command."]


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
