"""What a run prints: the tables of a contract check, and a summary over all its processes."""

import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from panda_icefall.routing import LossTotals
from panda_icefall.runs.atomic_file import finite_json
from panda_icefall.runs.contract.result import ContractRecord, Distance
from panda_icefall.runs.options import PandaOptions
from panda_icefall.runs.records import RunOutcome, nan_first, nan_last
from panda_icefall.runs.report.units import MIB

__all__ = ["as_json", "open_console", "print_contract", "print_summary"]

LOG_WIDTH = 120
_OFF = "OFF, the recipe trained dense; --use-panda 1 routes its losses"
_CHECKED = "compared with dense in the contract check; the recipe itself trained dense"


def open_console() -> Console:
    """A console on stderr; stdout stays the recipe's own. Wide enough for tables in log files."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=LOG_WIDTH)


def print_contract(result: ContractRecord, path: Path | None, console: Console) -> None:
    """Print losses and memory by update, then the worst distances; ``path``: of the report."""
    losses = Table(
        *("update", "dense loss", "routed loss", "relative", "other ranges"),
        *("dense MiB", "routed MiB"),
        title=f"PANDA contract: dense against routed, {result.precision}",
    )
    for b in result.batches:
        losses.add_row(
            str(b.update),
            f"{b.loss_dense:.7g}",
            f"{b.loss_routed:.7g}",
            f"{b.loss_rel:.2e}",
            f"{b.prune_ranges.frames_differing} / {b.prune_ranges.frames}",
            *(f"{(size or 0) / MIB:.1f}" for size in (b.peak_bytes_dense, b.peak_bytes_routed)),
        )
    console.print(losses)
    if result.compared_with:
        console.print(result.compared_with)
    console.print(
        "other ranges: frames for which the routed arm alone would have chosen other prune ranges"
    )
    of_losses = _pruned_losses(result)
    if of_losses.row_count:
        console.print(of_losses)
    console.print(_gradients_and_parameters(result))
    configured = result.tolerances.get("gradient_rel_l2", 0.0)
    for b in result.batches:
        for d in b.gradients_twin:
            bound = b.gradient_bounds[d.group]
            if bound > configured:  # the others have the bound of every gradient
                console.print(
                    f"update {b.update}: rounding in the loss alone moves the dense gradient of "
                    f"{d.group} by rel-L2 {d.rel_l2:.2e}: the routed one may differ by {bound:.2e}",
                    markup=False,
                    soft_wrap=True,
                )
    silent = result.without_pruned_gradient
    if silent and len(silent) < len(result.batches):
        console.print(
            f"not compared in backward: update(s) {', '.join(map(str, silent))}: the transducer "
            "loss had no gradient there (does the recipe give it the weight 0 in its warm-up?)"
        )
    for violation in result.violations:
        console.print(f"violated: {violation}", style="red", markup=False)
    verdict = "holds" if result.has_passed else "is VIOLATED"
    console.print(
        f"The contract {verdict} over {result.steps} update(s), {len(result.batches)} batch(es) "
        f"compared; details: {path or 'not written'}",
        markup=False,
    )


def _pruned_losses(result: ContractRecord) -> Table:
    table = Table(
        *("loss", "quantity", "max-abs", "over 1 + |dense|", "rel-L2", "cosine"),
        title="transducer losses and their log-probs at the sites inside the boundary, worst over "
        "the batches",
    )
    for name, of_batches in (
        ("value", [b.pruned_losses for b in result.batches]),
        ("selected log-probs", [b.log_probs for b in result.batches]),
        ("log_z", [b.log_z for b in result.batches]),
    ):
        for group, distances in _by_group(of_batches).items():
            worst = (_largest(distances, figure) for figure in ("max_abs", "max_scaled", "rel_l2"))
            table.add_row(escape(group), name, *worst, _least_cosine(distances))
    return table


def _gradients_and_parameters(result: ContractRecord) -> Table:
    table = Table(
        Column("group", overflow="fold"),
        *("gradient max-abs", "gradient rel-L2", "cosine", "parameters rel-L2", "dense twin"),
        title="worst over the updates; dense twin: start perturbed by one ulp, losses rounded "
        "differently",
    )
    final = {d.group: f"{d.rel_l2:.2e}" for d in result.parameters}
    twin = {d.group: f"{d.rel_l2:.2e}" for d in result.parameters_twin}
    for group, distances in _by_group(b.gradients for b in result.batches).items():
        judged = [d for d in distances if not d.is_negligible]
        table.add_row(
            escape(group),
            _largest(distances, "max_abs"),
            _largest(judged, "rel_l2") if judged else "dense ~0, judged absolutely",
            _least_cosine(judged) if judged else "-",
            final.get(group, "-"),
            twin.get(group, "-"),
        )
    return table


def _by_group(batches: Iterable[list[Distance]]) -> dict[str, list[Distance]]:
    groups: dict[str, list[Distance]] = {}
    for distances in batches:
        for distance in distances:
            groups.setdefault(distance.group, []).append(distance)
    return groups


def _largest(distances: list[Distance], figure: str) -> str:
    return f"{max((getattr(d, figure) for d in distances), key=nan_last):.2e}"


def _least_cosine(distances: list[Distance]) -> str:
    return f"{min((d.cosine for d in distances), key=nan_first):.9f}"


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
    off = _CHECKED if options.check_batches else _OFF
    rows = [
        ("PANDA", f"ON: {options.in_words}" if is_on else off),
        ("ranks", str(len(outcomes))),
        ("training batches per rank", ", ".join(str(o.batches) for o in outcomes)),
    ]
    if is_on:
        total = sum((o.counters for o in outcomes), LossTotals())
        rows += _routing_rows(total)
        if options.ctc:
            counts = f"{total.ctc_losses_routed} / {total.ctc_losses_dense}"
            rows.append(("CTC losses routed / dense", counts))
        if options.verify_every is not None:
            losses, batches = (
                sum(getattr(o, f"verified_{what}") for o in outcomes)
                for what in ("losses", "batches")
            )
            rows.append(("losses compared with dense", f"{losses} of {batches} batches"))
    rows.append(("seconds in all", f"{max((o.seconds for o in outcomes), default=0.0):.1f}"))
    rows += _memory_rows(outcomes)
    table = Table(title="PANDA summary", show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)
    if any(o.is_bounded for o in outcomes):
        console.print(
            "The recipe was stopped after the check; `panda-icefall run` trains it."
            if options.stop_after_check
            else "The run was stopped early, as asked; a checkpoint of that epoch covers only a "
            "part of it."
        )
    for outcome in outcomes:
        for label, path in (("memory log", outcome.memory_log), ("contract", outcome.contract)):
            if path is not None:
                line = f"{label} (rank {outcome.rank}): {path}"
                console.print(line, markup=False, soft_wrap=True)
    for outcome in outcomes:
        if outcome.non_finite is not None:
            line = (
                f"Losses that are not finite in {outcome.non_finite_batches} training batch(es) "
                f"(rank {outcome.rank}); the first bad batch is described in {outcome.non_finite}"
            )
            console.print(line, style="red", markup=False, soft_wrap=True)
    for outcome in outcomes:
        if outcome.memory_log_error is not None:
            line = (
                f"The memory log {outcome.memory_log} (rank {outcome.rank}) is NOT complete: "
                f"{outcome.memory_log_error}"
            )
            console.print(line, style="red", markup=False, soft_wrap=True)


def as_json(outcomes: list[RunOutcome]) -> str:
    """One line of JSON: ``processes``, by rank, and ``contract``, that of the lowest, or null.

    NaN and infinity are text in it.
    """
    paths = [outcome.contract for outcome in outcomes if outcome.contract is not None]
    contract = json.loads(Path(paths[0]).read_text(encoding="utf-8")) if paths else None
    processes = [outcome.model_dump() for outcome in outcomes]
    return json.dumps(finite_json({"processes": processes, "contract": contract}), allow_nan=False)


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
            "simple losses recorded / on tensors / dense",
            f"{total.simple_losses_deferred} / {total.simple_losses_of_tensors} / "
            f"{total.simple_losses_dense}",
        ),
        ("materialised", _materialised(total)),
        ("sites", f"{total.sites:,}"),
        ("evaluated forward", _share(total.sites_evaluated, total.sites)),
        ("evaluated backward", _share(total.sites_backward, total.sites)),
        ("tiles forward / backward", f"{total.tiles_forward} / {total.tiles_backward}"),
        *(
            [
                (
                    "tiles retried at half size after running out of memory",
                    str(total.out_of_memory_retries),
                )
            ]
            if total.out_of_memory_retries
            else []
        ),
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
