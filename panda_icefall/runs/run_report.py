"""What one process of a run did, and the summary over all of them."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from rich.console import Console
from rich.table import Table

from panda_icefall.routing import LossTotals
from panda_icefall.runs.atomic_file import replace_file

__all__ = ["RunOutcome", "open_console", "print_summary", "read_outcomes"]

LOG_WIDTH = 120
_OUTCOME_FILES = "rank*.json"


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


def print_summary(outcomes: list[RunOutcome], console: Console, *, has_routing: bool) -> None:
    """Print one table over all ranks and where their files lie; counts are summed over ranks.

    Args:
      outcomes: One per rank.
      console: Where to print.
      has_routing: Whether the recipe itself trained with PANDA; else its counters say nothing.
    """
    if not any(o.batches for o in outcomes):
        console.print("PANDA summary: no training batch went round.")
        return
    rows = [
        ("ranks", str(len(outcomes))),
        ("training batches per rank", ", ".join(str(o.batches) for o in outcomes)),
    ]
    if has_routing:
        rows += _routing_rows(sum((o.counters for o in outcomes), LossTotals()))
    rows.append(("seconds in all", f"{max((o.seconds for o in outcomes), default=0.0):.1f}"))
    table = Table(title="PANDA summary", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
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
