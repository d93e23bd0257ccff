"""What `--panda-verify-every N` costs: both losses of a batch with and without being compared.

    python scripts/bench_guard.py
    python scripts/bench_guard.py --adjoints trained

`a batch`: forward and backward of simple and pruned loss. `compared`: what the guard does besides,
dense losses of the batch's two longest utterances in float64 among it; its share of `a batch` is
for N = 200 (--every). A step of training has an encoder and an optimizer too: of that it is less.
Inputs are those of bench_loss.py. Times are taken in one process, interleaved.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from benchmarks import results
from benchmarks.arms import Step
from benchmarks.chosen_inputs import add_inputs, chosen_inputs, settings_of
from benchmarks.inputs import LossInputs
from benchmarks.options import at_least, make_parser
from benchmarks.tables import measuring
from benchmarks.timing import interleaved_samples, times

from panda_icefall.routing import Computed, followed_losses
from panda_icefall.runs.hooks.guard import bounds_on, compared

UTTERANCES = 2


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    add_inputs(p)
    p.add_argument("--every", type=at_least(1), default=200, help="N")
    return p


def bench(inputs: LossInputs, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The batch alone, and what comparing it adds."""
    device = torch.device(args.device)
    step = Step.make("panda", "whole", inputs, args.workspace_mib)
    losses: list[Computed] = []
    with followed_losses(losses.append, log_probs=True):
        step.run()
    longest = inputs.boundary[:, 3].argsort(descending=True)[:UTTERANCES].sort().values.tolist()
    bounds = bounds_on(device, torch.float32)

    def verify() -> None:
        deviations = [d for found in losses for d in compared(found, longest)]
        # A figure of losses that were not compared, or are wrong, would be of something else.
        if {d.loss for d in deviations} != {found.name for found in losses}:
            raise RuntimeError(f"the guard compared {deviations}")
        wrong = [d for d in deviations if not d.distance <= bounds[d.quantity]]
        if wrong:
            raise RuntimeError(f"the guard finds {wrong}")

    verify()
    samples = interleaved_samples({"a batch": step.run, "compared": verify}, args.repeats, device)
    whole = min(samples["a batch"])
    return [
        {
            "name": name,
            **times(seconds),
            "share": min(seconds) / (args.every * whole) if name == "compared" else None,
        }
        for name, seconds in samples.items()
    ]


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    inputs = chosen_inputs(parser, args)
    settings = {**settings_of(args, inputs), "every": args.every}
    target = args.json or results.default_path(
        "guard", args.corpus, args.adjoints, device=args.device, dtype=args.dtype
    )
    with measuring("guard", settings, target) as rows:
        rows += bench(inputs, args)


if __name__ == "__main__":
    main()
