"""Rows for a RESULTS table from the reports of bounded runs, as Markdown on stdout.

python scripts/bounded_table.py panda-bounded/*/report.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

COLUMNS = (
    "configuration",
    "contract: loss / log-probs / gradient",
    "30 steps: loss (twin)",
    "final parameters, bulk (twin)",
    "resumed",
    "sites forward / backward",
    "peak MiB, dense / routed",
    "s/step, dense / routed",
    "holds",
)


def largest(values: list[Any]) -> float:
    return max(float(value) for value in values)


def of_steps(arm: dict[str, Any], key: str) -> list[float]:
    """One figure of every step but the first, which also warms caches up."""
    return [step[key] for step in arm["steps"][1:]]


def row(report: dict[str, Any]) -> list[str]:
    batches = report["contract"]["batches"]
    gradients = [g["rel_l2"] for b in batches for g in b["gradients"] if not g["is_negligible"]]
    log_probs = [d["rel_l2"] for b in batches for d in b["log_probs"]]
    curve, final = report["trajectory"], report["final_parameters"]
    dense, routed = report["arms"]["dense"], report["arms"]["routed"]
    counted = routed["counters"]
    peaks = [max(of_steps(arm, "peak_bytes")) / 2**20 for arm in (dense, routed)]
    seconds = [statistics.median(of_steps(arm, "seconds")) for arm in (dense, routed)]
    resumed = "same bits" if report["resume"]["is_bitwise"] else f"{report['resume']['rel_l2']:.1e}"
    return [
        report["title"],
        f"{largest([b['loss_rel'] for b in batches]):.1e} / {largest(log_probs):.1e} / "
        f"{largest(gradients):.1e}",
        f"{curve['largest_relative_difference']:.1e} "
        f"({curve['twin_largest_relative_difference']:.1e})",
        f"{final['rel_l2']:.1e} ({final['twin_rel_l2']:.1e}), "
        f"{final['bulk_rel_l2']:.1e} ({final['twin_bulk_rel_l2']:.1e})",
        resumed,
        f"{counted['sites_evaluated'] / counted['sites']:.0%} / "
        f"{counted['sites_backward'] / counted['sites']:.0%}",
        f"{peaks[0]:.0f} / {peaks[1]:.0f}",
        f"{seconds[0]:.2f} / {seconds[1]:.2f}",
        "yes" if report["passed"] else "NO",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", type=Path, nargs="+", help="report.json of complete runs")
    reports = [json.loads(path.read_text()) for path in parser.parse_args().reports]
    for line in (COLUMNS, ["---"] * len(COLUMNS), *map(row, reports)):
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
