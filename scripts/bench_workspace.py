"""Time and memory of the whole transducer loss against the size of PANDA's tiles.

    python scripts/bench_workspace.py --corpus aishell

The sizes take turns in one process, medians; the peak of each is measured in a process of its own.
Inputs are those of bench_loss.py, whose docstring says where a checkpoint comes from.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks import results, tables
from benchmarks.arms import ARMS, Step
from benchmarks.child import Job, measure
from benchmarks.chosen_inputs import add_inputs, chosen_inputs, settings_of
from benchmarks.inputs import LossInputs
from benchmarks.options import check_counts, make_parser
from benchmarks.timing import interleaved_medians

SIZES_MIB = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    add_inputs(p)
    p.add_argument("--sizes-mib", type=float, nargs="+", default=SIZES_MIB)
    return p


def bench(inputs: LossInputs, path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per size."""
    peaks = {
        size: measure(Job("panda", "whole", inputs.shape, str(path), size, device=args.device))
        for size in args.sizes_mib
    }
    steps = {f"{size:g}": Step.make("panda", "whole", inputs, size) for size in args.sizes_mib}
    for step in steps.values():
        step.run()
    runs = {name: step.run for name, step in steps.items()}
    seconds = interleaved_medians(runs, args.repeats, torch.device(args.device))
    return [
        {
            "arm": "panda",
            "label": ARMS["panda"].label,
            **asdict(peaks[size]),
            "workspace_mib": size,
            "seconds": seconds[f"{size:g}"],
        }
        for size in args.sizes_mib
    ]


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    check_counts(parser, args, "repeats")
    if min(args.sizes_mib) <= 0 or args.workspace_mib is not None:
        parser.error(f"--sizes-mib: got {args.sizes_mib}, expected sizes above 0 here only")
    inputs = chosen_inputs(parser, args)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.pt"
        inputs.save(path)
        rows = bench(inputs, path, args)
    figures = results.document("workspace", settings_of(args, inputs), rows)
    results.print_table(tables.title(figures), figures, tables.COLUMNS["workspace"])
    path = args.json or results.default_path("workspace", args.corpus, args.adjoints)
    results.write(figures, path)


if __name__ == "__main__":
    main()
