"""Memory and time of the pruned loss against the number of classes, under a memory cap.

    python scripts/bench_classes.py

N sites stay as they are, C grows. Each method and C has a process of its own that may hold
`--cap-gib` beside the interpreter and its libraries (RLIMIT_DATA on a CPU: heap and private
mappings; torch's mapped code does not count; inputs, head and gradients do). A refused allocation
is an out-of-memory mark, any other failure ends the benchmark. Larger C are not tried once a method
has failed.

The slope of the peak in C, between the two largest C that fit, is given in float32 copies of the
head's weight and bias: 1 is the head's own gradient and nothing else. Times are of a second process
under the same cap, one method after another.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from benchmarks import results
from benchmarks.arms import ARMS, arms_of
from benchmarks.child import Job, measure
from benchmarks.options import add_shape, at_least, make_parser, shape_with
from benchmarks.shapes import LossShape
from benchmarks.tables import measuring

CLASSES = (500, 4336, 16384, 65536, 131072, 262144)
# N = 2000, all inside the boundary.
SHAPE = LossShape(B=4, T=100, S=14, shortest=1.0)


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    p.set_defaults(repeats=2)
    add_shape(p, "B", "T", "S", "s_range", "H", "D")
    p.add_argument("--classes", type=at_least(2), nargs="+", default=CLASSES, help="ascending")
    p.add_argument("--cap-gib", type=float, default=4.0)
    p.add_argument("--arms", nargs="+", choices=sorted(ARMS), help="all if not given")
    return p


def sweep(arm: str, shape: LossShape, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per C, up to the first that does not fit."""
    rows: list[dict[str, Any]] = []
    for C in args.classes:
        at_C = LossShape(**{**vars(shape), "C": C})
        # Where one run takes long it is timed once.
        repeats = args.repeats if C <= 65536 else 1
        measured = measure(
            Job(
                arm, "pruned", at_C, None, args.workspace_mib, int(args.cap_gib * 2**30),
                args.device, repeats, args.dtype, args.warm_ups,
            )
        )  # fmt: skip
        head_bytes = 4 * C * (shape.H + 1)
        row = {"C": C, "arm": arm, "label": ARMS[arm].label, **asdict(measured)}
        rows.append({**row, "head_copies": None, "slope_copies": None, "time_ratio": None})
        print(f"C={C} {ARMS[arm].label}: {row['peak_bytes'] / 2**20:.0f} MiB", flush=True)
        if measured.is_out_of_memory:
            break
        rows[-1]["head_copies"] = measured.peak_bytes / head_bytes
    fitting = [row for row in rows if not row["is_out_of_memory"]]
    if len(fitting) > 1:
        small, large = fitting[-2:]
        slope = (large["peak_bytes"] - small["peak_bytes"]) / (large["C"] - small["C"])
        large["slope_copies"] = slope / (4 * (shape.H + 1))
    return rows


def add_time_ratios(rows: list[dict[str, Any]]) -> None:
    """Minima by the dense loss's at the same C, where that one fits."""
    fitting = [row for row in rows if not row["is_out_of_memory"]]
    dense = {row["C"]: row["seconds_min"] for row in fitting if row["arm"] == "dense"}
    for row in fitting:
        if row["C"] in dense:
            row["time_ratio"] = row["seconds_min"] / dense[row["C"]]


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    if list(args.classes) != sorted(set(args.classes)):
        parser.error(f"--classes: got {args.classes}, expected them ascending")
    if args.cap_gib <= 0:
        parser.error(f"--cap-gib: got {args.cap_gib}, expected above 0")
    shape = shape_with(SHAPE, args)
    settings = {
        "shape": {k: v for k, v in vars(shape).items() if k != "C"},
        "sites": shape.sites,
        "cap_bytes": int(args.cap_gib * 2**30),
        "workspace_mib": args.workspace_mib,
        "device": args.device,
        "dtype": args.dtype,
    }
    target = args.json or results.default_path("classes", device=args.device, dtype=args.dtype)
    available = arms_of("pruned", args.device, args.dtype)
    with measuring("classes", settings, target) as rows:
        for arm in available:
            rows += sweep(arm, shape, args) if not args.arms or arm in args.arms else []
        rows.sort(key=lambda row: row["C"])
        add_time_ratios(rows)


if __name__ == "__main__":
    main()
