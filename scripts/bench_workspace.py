"""Time and memory of the whole transducer loss against the size of PANDA's tiles.

    python scripts/bench_workspace.py --corpus aishell

The sizes take turns in one process; the peak of each is measured in a process of its own.
Inputs are those of bench_loss.py.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks import results
from benchmarks.arms import ARMS, Step
from benchmarks.child import Job, measure
from benchmarks.chosen_inputs import add_inputs, chosen_inputs, settings_of
from benchmarks.inputs import LossInputs, saved
from benchmarks.options import make_parser
from benchmarks.tables import measuring
from benchmarks.timing import interleaved_samples, times

SIZES_MIB = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    add_inputs(p)
    p.add_argument("--sizes-mib", type=float, nargs="+", default=SIZES_MIB)
    return p


def bench(inputs: LossInputs, path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per size."""
    peaks = {
        size: measure(
            Job(
                "panda", "whole", inputs.shape, str(path), size,
                device=args.device, precision=args.dtype, warm_ups=args.warm_ups,
            )
        )
        for size in args.sizes_mib
    }  # fmt: skip
    steps = {
        f"{size:g}": Step.make("panda", "whole", inputs, size, args.dtype)
        for size in args.sizes_mib
    }
    for step in steps.values():
        step.run()
    samples = interleaved_samples(steps, args.repeats, torch.device(args.device), args.warm_ups)
    return [
        {
            "arm": "panda",
            "label": ARMS["panda"].label,
            **asdict(peaks[size]),
            "workspace_mib": size,
            **times(samples[f"{size:g}"]),
        }
        for size in args.sizes_mib
    ]


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    if min(args.sizes_mib) <= 0 or args.workspace_mib is not None:
        parser.error(f"--sizes-mib: got {args.sizes_mib}, expected sizes above 0 here only")
    inputs = chosen_inputs(parser, args)
    target = args.json or results.default_path(
        "workspace", args.corpus, args.adjoints, device=args.device, dtype=args.dtype
    )
    settings = settings_of(args, inputs)
    with measuring("workspace", settings, target) as rows, saved(inputs) as path:
        rows += bench(inputs, path, args)


if __name__ == "__main__":
    main()
