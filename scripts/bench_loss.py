"""The transducer loss, forward and backward, dense against selected: memory, time, agreement.

    python scripts/bench_loss.py --corpus aishell
    python scripts/bench_loss.py --corpus aishell --adjoints trained

Three parts: `whole`, the recipes' `0.5 * simple + pruned` from encoder and decoder outputs, with
the simple loss's band; `simple` and `pruned`, its halves. All methods run the same module
(benchmarks/model.py); dense computes as k2 of 2025 does (benchmarks/k2_of_2025.py), and in the k2
lane the k2 that is installed stands beside it.

Memory: each method in a fresh process, peak above inputs and parameters, all gradients included.
Time: all methods in one process, interleaved, after a round that compares losses and gradients with
the dense ones: minima, which a quiet machine gives, and medians. A run is one session; it is added
to those in the JSON file, and tables print the range over them. The GEMM limit is the time of the
method's own matrix products (benchmarks/gemm_limit.py).

`--adjoints random` has random inputs and weights: nearly every site inside the boundary has an
adjoint. `trained` has those of a model of egs/tones with 4336 classes from tensors that are shipped
(benchmarks/stored_inputs.py), or of any other with `--checkpoint` (make_trained_inputs.py has the
commands).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks import results
from benchmarks.agreement import Reference
from benchmarks.arms import ARMS, Step, arms_of
from benchmarks.child import Job, Measured, measure
from benchmarks.chosen_inputs import add_inputs, chosen_inputs, settings_of
from benchmarks.gemm_limit import recorded_gemms
from benchmarks.inputs import LossInputs, saved
from benchmarks.model import PARTS
from benchmarks.options import make_parser
from benchmarks.tables import measuring
from benchmarks.timing import interleaved_samples, times

import panda_icefall

SMALL_MASS = 1e-6


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    add_inputs(p)
    p.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    p.add_argument("--arms", nargs="+", choices=sorted(ARMS), help="dense is always run")
    return p


def carrying_share(inputs: LossInputs) -> float:
    """The share of all sites that carries all but `SMALL_MASS` of the pruned loss's adjoints."""
    step = Step.make("panda", "pruned", inputs)
    with panda_icefall.patched(adjoint_tolerance=SMALL_MASS):
        panda_icefall.routing.reset_counters()
        step.model(inputs, "pruned").backward()
    status = panda_icefall.status()
    return status.sites_backward / status.sites


def bench_part(
    part: str, arms: list[str], inputs: LossInputs, path: Path, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per method."""
    device = torch.device(args.device)
    peaks = {
        arm: measure(
            Job(
                arm, part, inputs.shape, str(path), args.workspace_mib,
                device=args.device, precision=args.dtype, warm_ups=args.warm_ups,
            )
        )
        for arm in arms
    }  # fmt: skip
    steps = {arm: Step.make(arm, part, inputs, args.workspace_mib, args.dtype) for arm in arms}
    reference = Reference(steps["dense"])
    agreements = {arm: reference.against(steps[arm]) for arm in arms}
    gemms = {f"limit of {arm}": recorded_gemms(steps[arm]) for arm in arms if ARMS[arm].is_routed}
    samples = interleaved_samples({**steps, **gemms}, args.repeats, device, args.warm_ups)
    timed = {name: times(seconds) for name, seconds in samples.items()}
    return [
        {
            "part": part,
            "arm": arm,
            "label": ARMS[arm].label,
            **asdict(peaks[arm]),
            **asdict(agreements[arm]),
            **timed[arm],
            **ratios(arm, peaks, timed),
        }
        for arm in arms
    ]


def ratios(
    arm: str, peaks: Mapping[str, Measured], timed: Mapping[str, dict[str, Any]]
) -> dict[str, float | None]:
    """A method's peak and times by those of the dense one, of k2 and of its own products."""
    mine, dense, k2 = (timed.get(name) for name in (arm, "dense", "k2"))
    limit = timed.get(f"limit of {arm}")
    assert mine is not None
    assert dense is not None
    peak = peaks[arm].peak_bytes
    return {
        # Resident memory need not grow at all for a batch of a few sites.
        "memory_ratio": peaks["dense"].peak_bytes / peak if peak else None,
        "time_ratio": mine["seconds_min"] / dense["seconds_min"],
        "median_ratio": mine["seconds"] / dense["seconds"],
        "k2_time_ratio": mine["seconds_min"] / k2["seconds_min"] if k2 else None,
        "limit_seconds": limit["seconds_min"] if limit else None,
        "of_limit": mine["seconds_min"] / limit["seconds_min"] if limit else None,
    }


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    inputs = chosen_inputs(parser, args)
    facts = {"carrying_share": carrying_share(inputs)}
    target = args.json or results.default_path(
        "loss", args.corpus, args.adjoints, device=args.device, dtype=args.dtype
    )
    with measuring("loss", settings_of(args, inputs), target, facts) as rows, saved(inputs) as path:
        for part in args.parts:
            available = arms_of(part, args.device, args.dtype)
            arms = [a for a in available if not args.arms or a in ("dense", *args.arms)]
            rows += bench_part(part, arms, inputs, path, args)


if __name__ == "__main__":
    main()
