"""What one process of a run did, and the summary over all of them."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from rich.console import Console
from rich.table import Table
from rich.text import Text

from panda_icefall.routing import LossTotals
from panda_icefall.runs.atomic_file import replace_file
from panda_icefall.runs.options import PandaOptions

__all__ = ["RunOutcome", "open_console", "print_summary", "read_outcomes"]

LOG_WIDTH = 120
_OUTCOME_FILES = "rank*.json"
_OFF = "OFF, the recipe trained dense; --use-panda 1 routes its losses"
_MIB = 2**20


@dataclass(frozen=True)
class RunOutcome:
    """What one process of a run did.

    Attributes:
      rank: Rank of the process.
      batches: Training batches that went round.
      seconds: Wall time from the start to the end of the recipe in this process.
      counters: What routing counted for the recipe, checks left out.
      is_bounded: The run was ended by a bound that the user set.
      memory_log: The memory log written, if any.
      contract: The contract report written, if any.
      violations: Violations of the contract.
      error: What ended the run, where that was an error with a name: its class and its message.
      device: The training device.
      peak_bytes: The most memory that the process had: allocated on CUDA, resident on CPU.
      losses_bytes: The most that the losses of a step added in forward, which the memory log knows;
        0: unknown.
      memory_log_error: Why the memory log ends before the run, if it does.
    """

    rank: int
    batches: int
    seconds: float
    counters: LossTotals = field(default_factory=LossTotals)
    is_bounded: bool = False
    memory_log: Optional[str] = None
    contract: Optional[str] = None
    violations: tuple[str, ...] = ()
    error: Optional[tuple[str, str]] = None
    device: str = "cpu"
    peak_bytes: int = 0
    losses_bytes: int = 0
    memory_log_error: Optional[str] = None

    def write(self, folder: Path) -> None:
        """Leave the outcome for the parent process in ``folder``, in place of an earlier one."""
        text = json.dumps(dataclasses.asdict(self))
        replace_file(folder / f"rank{self.rank}.json", text.encode("utf-8"))


def read_outcomes(folder: Path) -> list[RunOutcome]:
    """The outcomes that child processes left in ``folder``, by rank."""
    outcomes = []
    for path in folder.glob(_OUTCOME_FILES):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["counters"] = LossTotals(**content["counters"])
        content["violations"] = tuple(content["violations"])
        content["error"] = None if content["error"] is None else tuple(content["error"])
        outcomes.append(RunOutcome(**content))
    return sorted(outcomes, key=lambda outcome: outcome.rank)


def open_console() -> Console:
    """A console on stderr; stdout stays the recipe's own. Wide enough for tables in log files."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=LOG_WIDTH)


def print_summary(outcomes: list[RunOutcome], console: Console, options: PandaOptions) -> None:
    """Print one table over all ranks and where their files lie; counts are summed over ranks.

    Args:
      outcomes: One per rank.
      console: Where to print.
      options: What the user asked for. Where the recipe itself trained without PANDA, its counters
        say nothing.
    """
    if not any(o.batches for o in outcomes):
        console.print("PANDA summary: no training batch went round.")
        return
    is_on = options.use_panda
    rows = [
        ("PANDA", f"ON: {options.in_words}" if is_on else _OFF),
        ("ranks", str(len(outcomes))),
        ("training batches per rank", ", ".join(str(o.batches) for o in outcomes)),
    ]
    if is_on:
        rows += _routing_rows(sum((o.counters for o in outcomes), LossTotals()))
    rows.append(("seconds in all", f"{max((o.seconds for o in outcomes), default=0.0):.1f}"))
    rows += _memory_rows(outcomes)
    table = Table(title="PANDA summary", show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)
    if any(o.is_bounded for o in outcomes):
        console.print(
            "The run was ended at the bound that was asked for; where it saved a checkpoint of "
            "that epoch, it is one of a part of it."
        )
    for outcome in outcomes:
        for label, path in (("memory log", outcome.memory_log), ("contract", outcome.contract)):
            if path is not None:
                line = f"{label} (rank {outcome.rank}): {path}"
                console.print(line, markup=False, soft_wrap=True)
    for outcome in outcomes:
        if outcome.memory_log_error is not None:
            line = (
                f"The memory log {outcome.memory_log} (rank {outcome.rank}) is NOT complete: "
                f"{outcome.memory_log_error}"
            )
            console.print(line, style="red", markup=False, soft_wrap=True)


def _memory_rows(outcomes: list[RunOutcome]) -> list[tuple[str, str]]:
    highest = max(outcomes, key=lambda outcome: outcome.peak_bytes)
    kind = "resident" if highest.device == "cpu" else "allocated"
    peak = f"{highest.peak_bytes / _MIB:.0f} MiB {kind} on {highest.device}"
    if len(outcomes) > 1:
        peak += f" (rank {highest.rank}, the highest)"
    rows = [("peak memory of the process", peak)]
    if highest.losses_bytes:
        share = _share(highest.losses_bytes, highest.peak_bytes)
        added = f"{highest.losses_bytes / _MIB:.0f} MiB, {share} of the peak"
        rows.append(("added by the losses of a step, forward", added))
    return rows


def _routing_rows(total: LossTotals) -> list[tuple[str, str]]:
    return [
        ("losses routed / dense", f"{total.losses_routed} / {total.losses_dense}"),
        (
            "simple losses deferred / of tensors / dense",
            f"{total.simple_losses_deferred} / {total.simple_losses_of_tensors} / "
            f"{total.simple_losses_dense}",
        ),
        ("materialised", _materialised(total)),
        ("sites", f"{total.sites:,}"),
        ("evaluated forward", _share(total.sites_evaluated, total.sites)),
        ("evaluated backward", _share(total.sites_backward, total.sites)),
        ("tiles forward / backward", f"{total.tiles_forward} / {total.tiles_backward}"),
        ("adjoint mass skipped", _share(total.adjoint_mass_skipped, total.adjoint_mass, "{:.2e}")),
        (
            "seconds in the loss, forward / backward",
            f"{total.forward_seconds:.2f} / {total.backward_seconds:.2f}",
        ),
        (
            "seconds in the simple loss, forward / backward",
            f"{total.simple_forward_seconds:.2f} / {total.simple_backward_seconds:.2f}",
        ),
    ]


def _materialised(counters: LossTotals) -> str:
    ops = ", ".join(f"{op}: {n}" for op, n in sorted(counters.materialised.items()))
    return ops or "0"


def _share(part: float, whole: float, form: str = "{:.1%}") -> str:
    return form.format(part / whole) if whole else "-"
