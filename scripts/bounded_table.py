"""Rows for a RESULTS table from the reports of bounded runs, as Markdown on stdout.

python scripts/bounded_table.py panda-bounded/*/report.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from panda_icefall.runs.records import Arm, nan_last, validated
from panda_icefall.runs.run_record import RunRecord

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


def settled_peak_mib(arm: Arm) -> float:
    """The largest peak of any step but the first, which also warms caches up."""
    return max(step.peak_bytes or 0 for step in arm.settled) / 2**20


def row(report: RunRecord) -> list[str]:
    contract, curve, final = report.contract, report.trajectory, report.final_parameters
    if not (contract and curve and final and report.state == "complete"):
        raise SystemExit(
            f"{report.title}: got a run that is {report.state}, expected a complete one"
        )
    losses = [batch.loss_rel for batch in contract.batches]
    log_probs = [d.rel_l2 for batch in contract.batches for d in batch.log_probs]
    gradients = [g.rel_l2 for batch in contract.batches for g in batch.judged_gradients]
    worst = [max(distances, key=nan_last) for distances in (losses, log_probs, gradients)]
    dense, routed = report.arms["dense"], report.arms["routed"]
    counted = routed.counters
    resumed = "none"  # of a recipe that cannot be resumed within an epoch
    if report.resume is not None:
        resumed = "bit-identical" if report.resume.is_bitwise else f"{report.resume.rel_l2:.1e}"
    return [
        report.title or "untitled run",
        " / ".join(f"{distance:.1e}" for distance in worst),
        f"{curve.largest_relative_difference:.1e} ({curve.twin_largest_relative_difference:.1e})",
        f"{final.rel_l2:.1e} ({final.twin_rel_l2:.1e}), "
        f"{final.bulk_rel_l2:.1e} ({final.twin_bulk_rel_l2:.1e})",
        resumed,
        f"{counted.sites_evaluated / counted.sites:.0%} / "
        f"{counted.sites_backward / counted.sites:.0%}",
        f"{settled_peak_mib(dense):.0f} / {settled_peak_mib(routed):.0f}",
        f"{dense.median_seconds:.2f} / {routed.median_seconds:.2f}",
        "yes" if report.passed else "NO",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", type=Path, nargs="+", help="report.json of complete runs")
    paths = parser.parse_args().reports
    reports = [validated(RunRecord, json.loads(path.read_text()), path) for path in paths]
    for line in (COLUMNS, ["---"] * len(COLUMNS), *map(row, reports)):
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
