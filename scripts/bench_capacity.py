"""The largest `--max-duration` whose whole transducer loss fits a given memory.

    python scripts/bench_capacity.py --budget-mib 256

At the classes of real zipformer recipes, joiner and encoder output width 512, 25 frames a second,
s_range 5, utterances of a typical length that all fill their batch. Bisection on peaks that are
measured, each in a process of its own: above inputs and parameters, gradients of both included. The
encoder's own memory is not in it. The search ends when the interval is within `--tolerance`, or at
`--longest`, and then says `>=`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import results
from benchmarks.arms import ARMS
from benchmarks.child import Job, Measured, measure
from benchmarks.options import add_shape, make_parser, shape_with
from benchmarks.shapes import LossShape
from benchmarks.tables import measuring

FRAMES_PER_SECOND = 25
ARMS_COMPARED = ("dense", "panda")
SHORTEST = 0.5  # seconds of audio


@dataclass(frozen=True)
class Recipe:
    """What a batch of a recipe looks like.

    Attributes:
      C: classes.
      utterance_seconds: of a typical utterance; assumed, from the corpora's published hours by
        their number of utterances.
      symbols_per_second: of speech; assumed, from their transcripts.
    """

    C: int
    utterance_seconds: float
    symbols_per_second: float

    def batch(self, max_duration: float) -> LossShape:
        """So many seconds of audio as utterances of one length."""
        B = max(1, round(max_duration / self.utterance_seconds))
        seconds = max_duration / B
        T = max(1, round(FRAMES_PER_SECOND * seconds))
        S = max(1, min(T, round(self.symbols_per_second * seconds)))
        return LossShape(B=B, T=T, S=S, C=self.C, shortest=1.0)


RECIPES = {
    "aishell": Recipe(C=4336, utterance_seconds=4.5, symbols_per_second=3.2),
    "wenetspeech": Recipe(C=5537, utterance_seconds=2.5, symbols_per_second=4.0),
    "librispeech": Recipe(C=500, utterance_seconds=12.3, symbols_per_second=4.5),
}


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    p.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=sorted(RECIPES))
    add_shape(p, "C", "H", "D")
    p.add_argument("--budget-mib", type=float, default=256.0)
    p.add_argument("--start", type=float, default=8.0, help="seconds of audio tried first")
    p.add_argument("--longest", type=float, default=1600.0, help="seconds of audio tried last")
    p.add_argument("--tolerance", type=float, default=0.05, help="of the result, relative")
    return p


def largest_that_fits(
    peak_of: Callable[[float], Measured],
    budget_bytes: float,
    start: float,
    longest: float,
    tolerance: float,
) -> tuple[float, Measured | None, bool]:
    """Bisection, on a logarithmic scale, for the largest duration within a budget.

    Args:
      peak_of: measures one duration; its peak must rise with it.
      budget_bytes: the peak may be so large.
      start: the first duration tried; quadrupled until one does not fit, or quartered until one
        does.
      longest: none above is tried.
      tolerance: the interval's relative width at which to stop.

    Returns:
      The largest duration seen to fit (0: not even `SHORTEST`), its measurement, whether it is
      `longest`: then more may fit.
    """
    fits, best, too_long = 0.0, None, None
    duration = min(start, longest)
    while too_long is None or fits == 0.0 or too_long / fits > 1 + tolerance:
        measured = peak_of(duration)
        if measured.peak_bytes <= budget_bytes:
            fits, best = duration, measured
            if fits == longest:
                return fits, best, True
        else:
            too_long = duration
            if duration <= SHORTEST:
                return fits, None, False
        if too_long is None:
            duration = min(4 * fits, longest)
        else:
            duration = (fits * too_long) ** 0.5 if fits else max(too_long / 4, SHORTEST)
    return fits, best, False


def bench_recipe(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per method."""
    rows: list[dict[str, Any]] = []
    for arm in ARMS_COMPARED:

        def peak_of(duration: float, arm: str = arm) -> Measured:
            shape = shape_with(RECIPES[name].batch(duration), args)
            measured = measure(
                Job(
                    arm, "whole", shape, None, args.workspace_mib,
                    device=args.device, precision=args.dtype,
                )
            )  # fmt: skip
            peak_mib = measured.peak_bytes / 2**20
            print(f"{name} {ARMS[arm].label} {duration:.1f} s: {peak_mib:.0f} MiB", flush=True)
            return measured

        duration, best, is_bound = largest_that_fits(
            peak_of, args.budget_mib * 2**20, args.start, args.longest, args.tolerance
        )
        dense_duration = rows[0]["max_duration"] if rows else 0.0
        rows.append(
            {
                "recipe": name,
                "arm": arm,
                "label": ARMS[arm].label,
                "C": shape_with(RECIPES[name].batch(args.start), args).C,
                "max_duration": duration,
                "bound": ">= " if is_bound else "",
                "peak_bytes": best.peak_bytes if best else None,
                "capacity_ratio": duration / dense_duration if dense_duration and best else None,
            }
        )
    return rows


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    for option in ("budget_mib", "start", "longest", "tolerance"):
        if getattr(args, option) <= 0:
            name = option.replace("_", "-")
            parser.error(f"--{name}: got {getattr(args, option)}, expected above 0")
    settings = {
        "budget_bytes": int(args.budget_mib * 2**20),
        "tolerance": args.tolerance,
        "longest": args.longest,
        "recipes": {name: vars(RECIPES[name]) for name in args.recipes},
        "workspace_mib": args.workspace_mib,
        "device": args.device,
        "dtype": args.dtype,
    }
    target = args.json or results.default_path("capacity", device=args.device, dtype=args.dtype)
    with measuring("capacity", settings, target) as rows:
        rows += [row for name in args.recipes for row in bench_recipe(name, args)]


if __name__ == "__main__":
    main()
