"""Every transducer loss from a joiner, dense against PANDA: memory and time, joiner included.

    python scripts/bench_losses.py --adjoints peaked
    python scripts/bench_losses.py --public unsorted sorted --losses regular --adjoints peaked

Losses on the full lattice, and those with arcs over several frames on a pruned one too, at several
C; with `--public` at the shapes of the public transducer-loss-benchmarking instead. Measured is a
training step from encoder and decoder outputs to their gradients: projections, joiner, loss.
*dense* has logits of all sites and classes (benchmarks/dense_losses.py). torchaudio, k2 and
warprnnt_numba (`pip install warprnnt_numba 'numba<0.61'`) are run where they are installed.

Memory: each method in a fresh process that may hold `--cap-gib` beside code; one that needs more is
said to, and not timed. Time: the others in one process, interleaved, after a round that compares
losses and gradients; minima and medians. Public shapes at full size take logits of 3 GiB and
several times that for dense methods: `--shorten 4` takes a quarter of frames and symbols.

`--adjoints random` has random inputs and weights, so that every site matters. `peaked` is a model
that is sure of its alignment (benchmarks/peaked_inputs.py). The share of the sites whose backward
is computed is printed.

Source of the shapes: github.com/csukuangfj/transducer-loss-benchmarking.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks import results
from benchmarks.agreement import Agreement, Reference
from benchmarks.child import Job, measure
from benchmarks.gemm_limit import recorded_gemms
from benchmarks.inputs import LossInputs, saved
from benchmarks.losses import LABELS, LOSSES, LossStep, arms_of
from benchmarks.options import add_shape, at_least, make_parser, shape_with
from benchmarks.peaked_inputs import peaked_inputs
from benchmarks.shapes import PUBLIC, LossShape
from benchmarks.tables import measuring
from benchmarks.timing import interleaved_samples, times

CLASSES = (500, 4336, 65536)
# The others differ from these by their lattice alone, which has no classes.
MEASURED = [
    "regular", "modified", "one-symbol-per-frame", "HAT", "FastEmit", "multi-blank", "TDT",
    "multi-blank, pruned", "TDT, pruned",
]  # fmt: skip
SHAPE = LossShape(B=4, T=60, S=15)


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    p.add_argument("--losses", nargs="+", choices=LOSSES, default=MEASURED)
    p.add_argument("--arms", nargs="+", choices=LABELS, help="all that are installed if not given")
    p.add_argument("--adjoints", choices=("random", "peaked"), default="random")
    p.add_argument("--classes", type=at_least(2), nargs="+", default=CLASSES)
    p.add_argument("--public", nargs="+", choices=sorted(PUBLIC), help="these shapes, not C")
    p.add_argument("--shorten", type=at_least(1), default=1, help="divides T and S")
    p.add_argument("--cap-gib", type=float, default=4.0)
    add_shape(p, "B", "T", "S", "s_range", "H", "D")
    return p


def shapes_of(args: argparse.Namespace) -> dict[str, LossShape]:
    """What is measured, by name."""
    if args.public:
        shapes = {name: shape_with(PUBLIC[name], args) for name in args.public}
    else:
        shapes = {f"C={C}": replace(shape_with(SHAPE, args), C=C) for C in args.classes}
    return {
        name: replace(shape, T=max(1, shape.T // args.shorten), S=max(1, shape.S // args.shorten))
        for name, shape in shapes.items()
    }


def bench_loss(
    batch: str, loss: str, inputs: LossInputs, path: Path, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One row per method."""
    arms = [arm for arm in arms_of(loss) if not args.arms or arm in args.arms]
    cap = int(args.cap_gib * 2**30)
    peaks = {
        arm: measure(
            Job(
                arm, loss, inputs.shape, str(path), args.workspace_mib, cap, args.device,
                precision=args.dtype, warm_ups=args.warm_ups,
            )
        )
        for arm in arms
    }  # fmt: skip
    fitting = [arm for arm in arms if not peaks[arm].is_out_of_memory]
    steps = {
        arm: LossStep.make(arm, loss, inputs, args.workspace_mib, args.dtype) for arm in fitting
    }
    agreements = compared(steps)
    limits = {f"limit of {arm}": recorded_gemms(steps[arm]) for arm in fitting if arm == "panda"}
    samples = interleaved_samples(
        {**steps, **limits}, args.repeats, torch.device(args.device), args.warm_ups
    )
    timed = {name: times(seconds) for name, seconds in samples.items()}
    for arm in arms:
        peak = asdict(peaks[arm])
        dense, torchaudio = (
            asdict(peaks[a]) if a in peaks else None for a in ("dense", "torchaudio")
        )
        yield {
            "batch": batch,
            "form": loss,
            "arm": arm,
            "label": LABELS[arm],
            **peak,
            **timed.get(arm, {}),
            **(asdict(agreements[arm]) if arm in agreements else {}),
            "memory_ratio": by("peak_bytes", dense, peak),
            "torchaudio_memory_ratio": by("peak_bytes", torchaudio, peak),
            "time_ratio": by("seconds_min", timed.get(arm), timed.get("dense")),
            "torchaudio_time_ratio": by("seconds_min", timed.get(arm), timed.get("torchaudio")),
            "of_limit": by("seconds_min", timed.get(arm), timed.get(f"limit of {arm}")),
        }


def compared(steps: dict[str, LossStep]) -> dict[str, Agreement]:
    """Each method against the first, and its first run, which is not timed."""
    if not steps:
        return {}
    reference = Reference(next(iter(steps.values())))
    return {arm: reference.against(step) for arm, step in steps.items()}


def by(key: str, mine: dict[str, Any] | None, other: dict[str, Any] | None) -> float | None:
    """A ratio of two figures where both were measured."""
    if not mine or not other or not mine[key] or not other[key]:
        return None
    return mine[key] / other[key]


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    if args.cap_gib <= 0:
        parser.error(f"--cap-gib: got {args.cap_gib}, expected above 0")
    if args.arms and "dense" not in args.arms:
        args.arms = ["dense", *args.arms]
    shapes = shapes_of(args)
    settings = {
        "shapes": {name: vars(shape) for name, shape in shapes.items()},
        "adjoints": args.adjoints,
        "cap_bytes": int(args.cap_gib * 2**30),
        "workspace_mib": args.workspace_mib,
        "device": args.device,
        "dtype": args.dtype,
    }
    words = ["losses", *(args.public or []), args.adjoints]
    target = args.json or results.default_path(*words, device=args.device, dtype=args.dtype)
    make = LossInputs.random if args.adjoints == "random" else peaked_inputs
    with measuring("losses", settings, target) as rows:
        for name, shape in shapes.items():
            try:
                inputs = make(shape, torch.device(args.device))
            except ValueError as error:
                parser.error(str(error))
            with saved(inputs) as path:
                for loss in args.losses:
                    rows += bench_loss(name, loss, inputs, path, args)
                    print(f"{name} {loss}: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    main()
