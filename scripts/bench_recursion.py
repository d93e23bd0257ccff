"""What the recursion over the lattice costs, k2's or the exact one, in a step of the whole loss.

    python scripts/bench_recursion.py --adjoints trained

Both take the same step, forward and backward, in one process, interleaved; of it the time of its
two recursions, whose occupations are computed with the scores, and what the step takes more than
with k2's. Where k2 has no recursion for the device there is no row of it. The JSON's
`recursions_s`, `share` and `added` are minima over the repeats, in seconds and as fractions of the
step.

Inputs are those of bench_loss.py.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from benchmarks import results
from benchmarks.arms import Step
from benchmarks.chosen_inputs import add_inputs, chosen_inputs, settings_of
from benchmarks.inputs import LossInputs
from benchmarks.options import make_parser
from benchmarks.profile import RECURSIONS, WHOLE, parts_of
from benchmarks.tables import measuring
from benchmarks.timing import interleaved_samples, times

from panda_icefall.lattice import has_k2_recursion


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    add_inputs(p)
    return p


def bench(inputs: LossInputs, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per recursion."""
    device = torch.device(args.device)
    names = ["k2", "exact"] if has_k2_recursion(device) else ["exact"]
    steps = {
        name: Step.make("panda", "whole", inputs, args.workspace_mib, args.dtype, recursion=name)
        for name in names
    }
    for step in steps.values():
        step.run()
    samples = interleaved_samples(steps, args.repeats, device, args.warm_ups)
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name, step in steps.items():
            parts[name].append(parts_of(step))
    best = {name: min(samples[name]) for name in names}
    return [
        {
            "recursion": name,
            **times(samples[name]),
            "recursions_s": min(part[RECURSIONS] for part in parts[name]),
            "share": min(part[RECURSIONS] / part[WHOLE] for part in parts[name]),
            "added": best[name] / best["k2"] - 1 if "k2" in best else None,
        }
        for name in names
    ]


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    inputs = chosen_inputs(parser, args)
    target = args.json or results.default_path(
        "recursion", args.corpus, args.adjoints, device=args.device, dtype=args.dtype
    )
    with measuring("recursion", settings_of(args, inputs), target) as rows:
        rows += bench(inputs, args)


if __name__ == "__main__":
    main()
