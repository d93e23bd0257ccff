"""The summary of a run on the console, over all its processes."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from panda_icefall.routing import LossTotals
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.records import RunOutcome
from panda_icefall.runs.report.units import MIB

__all__ = ["open_console", "print_summary"]

LOG_WIDTH = 120
_OFF = "OFF, the recipe trained dense; --use-panda 1 routes its losses"


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
        console.print("PANDA summary: no batch was trained.")
        return
    is_on = options.use_panda
    rows = [
        ("PANDA", f"ON: {options.in_words}" if is_on else _OFF),
        ("ranks", str(len(outcomes))),
        ("training batches per rank", ", ".join(str(o.batches) for o in outcomes)),
    ]
    if is_on:
        total = sum((o.counters for o in outcomes), LossTotals())
        rows += _routing_rows(total)
        if options.ctc:
            counts = f"{total.ctc_losses_routed} / {total.ctc_losses_dense}"
            rows.append(("CTC losses routed / dense", counts))
    rows.append(("seconds in all", f"{max((o.seconds for o in outcomes), default=0.0):.1f}"))
    rows += _memory_rows(outcomes)
    table = Table(title="PANDA summary", show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)
    if any(o.is_bounded for o in outcomes):
        console.print(
            "The run ended at the bound that was asked for; a checkpoint of that epoch holds only "
            "a part of it."
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
    peak = f"{highest.peak_bytes / MIB:.0f} MiB {kind} on {highest.device}"
    if len(outcomes) > 1:
        peak += f" (rank {highest.rank}, the highest)"
    rows = [("peak memory of the process", peak)]
    if highest.losses_bytes:
        share = _share(highest.losses_bytes, highest.peak_bytes)
        added = f"{highest.losses_bytes / MIB:.0f} MiB, {share} of the peak"
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
