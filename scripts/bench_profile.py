"""Where the time of a step of the whole transducer loss goes, and how near it is to its products.

    python scripts/bench_profile.py --adjoints trained

By part: the counters of the tiled losses, forward and backward; recursions, checks and bands by the
functions that do them; the rest is what is left. By kind: torch's profiler, whose own cost makes
the small operations dearer than they are. `matrix products alone` is the step's GEMMs by plain
torch.mm and torch.bmm at the sizes of its tiles (benchmarks/gemm_limit.py): no step can be faster.

`--syncs` lists where a step would wait for a GPU, on any machine, and measures nothing.

Inputs are those of bench_loss.py.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch
from benchmarks import results
from benchmarks.arms import Step
from benchmarks.chosen_inputs import add_inputs, chosen_inputs, settings_of
from benchmarks.gemm_limit import products_of, recorded_gemms
from benchmarks.inputs import LossInputs
from benchmarks.options import make_parser
from benchmarks.profile import WHOLE, kinds_of, parts_of
from benchmarks.syncs import Syncs
from benchmarks.tables import measuring
from benchmarks.timing import seconds_of, times

PRODUCTS = "matrix products alone"


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    add_inputs(p)
    p.add_argument("--syncs", action="store_true", help="list where a step waits for the device")
    return p


def bench(inputs: LossInputs, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per part and per kind of operation."""
    step = Step.make("panda", "whole", inputs, args.workspace_mib, args.dtype)
    for _ in range(1 + args.warm_ups):
        step.run()
    gemms = recorded_gemms(step)
    flops = sum(product.flops for product in products_of(step))
    samples: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.repeats):
        products = {PRODUCTS: seconds_of(gemms, torch.device(args.device))}
        for kind, found in (("part", {**parts_of(step), **products}), ("kind", kinds_of(step))):
            for name, seconds in found.items():
                samples.setdefault((kind, name), []).append(seconds)
    whole = min(samples["part", WHOLE])
    of_kinds = sum(min(s) for (kind, _), s in samples.items() if kind == "kind")
    return [
        {
            "kind": kind,
            "name": name,
            **times(seconds),
            "share": min(seconds) / (whole if kind == "part" else of_kinds),
            "gflop": flops / 1e9 if name == PRODUCTS else None,
        }
        for (kind, name), seconds in samples.items()
    ]


def print_waits(step: Step) -> None:
    """One line per place at which a step's host waits for the device, and how often."""
    with Syncs() as syncs:
        step.run()
    for wait, count in Counter(syncs.waits).items():
        print(f"{count} x {wait.operation:16} {wait.place or '(not in panda_icefall)'}")
    print(f"{len(syncs.waits)} waits in a step, forward and backward")


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    if args.device == "cuda":  # whose kernels run when the host has gone on
        parser.error("--device: got cuda, expected cpu; see validate_gpu.py --only audit")
    inputs = chosen_inputs(parser, args)
    if args.syncs:
        print_waits(Step.make("panda", "whole", inputs, args.workspace_mib))
        return
    target = args.json or results.default_path(
        "profile", args.corpus, args.adjoints, device=args.device, dtype=args.dtype
    )
    with measuring("profile", settings_of(args, inputs), target) as rows:
        rows += bench(inputs, args)


if __name__ == "__main__":
    main()
