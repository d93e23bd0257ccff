"""The contract's findings as a table to read and a JSON file to keep."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from panda_icefall.runs.atomic_file import replace_file
from panda_icefall.runs.contract.comparison import Distance
from panda_icefall.runs.contract.result import ContractResult
from panda_icefall.runs.memory.log import finite_json, rank_path, run_versions
from panda_icefall.runs.report.units import MIB

__all__ = ["FILE_NAME", "print_contract", "write_contract"]

FILE_NAME = "panda-check.json"


def _as_json(result: ContractResult, device: torch.device) -> dict[str, Any]:
    """The whole result as JSON values; sizes in bytes."""
    content = {
        "has_passed": result.has_passed,
        "updates": result.updates,
        "update_steps": result.update_steps,
        "steps": result.steps,
        "precision": result.precision,
        "tolerances": dataclasses.asdict(result.tolerances),
        "batches": [
            {
                **dataclasses.asdict(b),
                "loss_abs": b.loss_abs,
                "loss_rel": b.loss_rel,
                "gradient_bounds": b.gradient_bounds(result.tolerances),
            }
            for b in result.batches
        ],
        "parameters": [dataclasses.asdict(d) for d in result.parameters],
        "parameters_twin": [dataclasses.asdict(d) for d in result.parameters_twin],
        "violations": result.violations,
        "versions": run_versions(device),
    }
    return dict(finite_json(content))


def write_contract(result: ContractResult, folder: Path, rank: int, device: torch.device) -> Path:
    """Write ``panda-check.json`` into ``folder`` so that no reader ever sees half of it."""
    path = rank_path(folder / FILE_NAME, rank)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_as_json(result, device), indent=2, allow_nan=False) + "\n"
    replace_file(path, text.encode("utf-8"))
    return path


def print_contract(result: ContractResult, path: Path, console: Console) -> None:
    """Print losses and memory by update, then the worst distances."""
    title = f"PANDA contract: dense against routed, {result.precision}"
    losses = Table(
        *("update", "dense loss", "routed loss", "relative", "other ranges"),
        *("dense MiB", "routed MiB"),
    )
    losses.title = title
    for b in result.batches:
        losses.add_row(
            str(b.update),
            f"{b.loss_dense:.7g}",
            f"{b.loss_routed:.7g}",
            f"{b.loss_rel:.2e}",
            f"{b.prune_ranges.frames_differing} / {b.prune_ranges.frames}",
            f"{b.peak_bytes_dense / MIB:.1f}",
            f"{b.peak_bytes_routed / MIB:.1f}",
        )
    console.print(losses)
    console.print(
        "other ranges: frames for which the routed arm alone would have chosen other prune ranges"
    )
    _print_pruned_losses(result, console)
    columns = ("gradient max-abs", "gradient rel-L2", "cosine", "parameters rel-L2", "dense twin")
    groups = Table(Column("group", overflow="fold"), *columns)
    groups.title = (
        "worst over the updates; dense twin: start perturbed by one ulp, simple losses rounded "
        "differently"
    )
    final = {d.group: f"{d.rel_l2:.2e}" for d in result.parameters}
    twin = {d.group: f"{d.rel_l2:.2e}" for d in result.parameters_twin}
    for group, distances in _by_group(b.gradients for b in result.batches).items():
        judged = [d for d in distances if not d.is_negligible]
        groups.add_row(
            group,
            f"{_worst(max, (d.max_abs for d in distances)):.2e}",
            f"{_worst(max, (d.rel_l2 for d in judged)):.2e}"
            if judged
            else "dense ~0, judged absolutely",
            f"{_worst(min, (d.cosine for d in judged)):.9f}" if judged else "-",
            final.get(group, "-"),
            twin.get(group, "-"),
        )
    console.print(groups)
    for b in result.batches:
        for d in b.gradients_twin:
            console.print(
                f"update {b.update}: rounding in the simple loss alone moves the dense gradient "
                f"of {d.group} by rel-L2 {d.rel_l2:.2e}: the routed one may be "
                f"{b.gradient_bounds(result.tolerances)[d.group]:.2e} apart"
            )
    silent = result.without_pruned_gradient
    if silent and len(silent) < len(result.batches):
        console.print(
            f"not compared in backward: update(s) {', '.join(map(str, silent))}: the pruned loss "
            "had no gradient there (does the recipe give it the weight 0 while it warms up?)"
        )
    for violation in result.violations:
        console.print(f"violated: {violation}", style="red", markup=False)
    verdict = "holds" if result.has_passed else "is VIOLATED"
    console.print(
        f"The contract {verdict} over {result.steps} update(s), {len(result.batches)} batch(es) "
        f"compared; details: {path}"
    )


def _print_pruned_losses(result: ContractResult, console: Console) -> None:
    quantities = {
        "value": _by_group(b.pruned_losses for b in result.batches),
        "selected log-probs": _by_group(b.log_probs for b in result.batches),
        "log_z": _by_group(b.log_z for b in result.batches),
    }
    table = Table("loss", "quantity", "max-abs", "over 1 + |dense|", "rel-L2", "cosine")
    table.title = (
        "pruned losses and their log-probs at the sites inside the boundary, worst over the batches"
    )
    for name, groups in quantities.items():
        for group, distances in groups.items():
            table.add_row(
                group,
                name,
                f"{_worst(max, (d.max_abs for d in distances)):.2e}",
                f"{_worst(max, (d.max_scaled for d in distances)):.2e}",
                f"{_worst(max, (d.rel_l2 for d in distances)):.2e}",
                f"{_worst(min, (d.cosine for d in distances)):.9f}",
            )
    if table.row_count:
        console.print(table)


def _worst(choose: Callable[[list[float]], float], values: Iterable[float]) -> float:
    """The largest or smallest value, NaN before any."""
    found = list(values)
    return math.nan if any(math.isnan(v) for v in found) else choose(found)


def _by_group(batches: Iterable[list[Distance]]) -> dict[str, list[Distance]]:
    groups: dict[str, list[Distance]] = {}
    for distances in batches:
        for distance in distances:
            groups.setdefault(distance.group, []).append(distance)
    return groups
