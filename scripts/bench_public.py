"""The shapes of the public transducer-loss-benchmarking: pruned and full-lattice losses.

    python scripts/bench_public.py

V=500, joiner width 512, LibriSpeech-like batches: N=30, T=451, U=121 unsorted and N=22, T=455,
U=112 sorted by length. The methods on the full lattice read logits of all states; where those would
need more than `--bound-gib`, fewer utterances of the same length are run, which the table's column
says, and figures per utterance compare them. Memory and time of each in a process of its own.
torchaudio and warprnnt_numba (`pip install warprnnt_numba 'numba<0.61'`) run where installed.

Source of the shapes: github.com/csukuangfj/transducer-loss-benchmarking.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from benchmarks import results
from benchmarks.arms import ARMS, arms_of
from benchmarks.child import Job, measure
from benchmarks.options import add_shape, check_counts, make_parser, shape_with
from benchmarks.shapes import PUBLIC, LossShape
from benchmarks.tables import measuring

PRUNED_ARMS = [arm for arm in arms_of("pruned") if arm != "row-chunks"]
# Logits, what a loss's backward makes of them, and the joiner's [B, T, S+1, H] before them: the
# largest count seen of any method here, k2's.
LOGITS_COPIES, HIDDEN_COPIES = 6, 3


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    p.set_defaults(repeats=1)
    p.add_argument("--batches", nargs="+", choices=sorted(PUBLIC), default=sorted(PUBLIC))
    add_shape(p, "B", "T", "S", "s_range", "C", "H", "D")
    p.add_argument("--bound-gib", type=float, default=12.0, help="for the full lattice")
    p.add_argument("--full-utterances", type=int, default=2, help="most of them, for time's sake")
    return p


def full_lattice_bytes(shape: LossShape) -> int:
    """What a dense full-lattice loss of this batch needs, about."""
    sites = shape.B * shape.T * (shape.S + 1)
    return 4 * sites * (LOGITS_COPIES * shape.C + HIDDEN_COPIES * shape.H)


def bounded(shape: LossShape, bound_bytes: float, most: int) -> LossShape:
    """As many of its utterances as the full lattice's bounds allow, one at least."""
    of_one = full_lattice_bytes(shape.with_batch(1))
    return shape.with_batch(max(1, min(shape.B, most, int(bound_bytes / of_one))))


def bench_batch(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per method."""
    shape = shape_with(PUBLIC[name], args)
    few = bounded(shape, args.bound_gib * 2**30, args.full_utterances)
    work = [("pruned", arm, shape) for arm in PRUNED_ARMS]
    work += [("full", arm, few) for arm in arms_of("full")]
    rows = []
    for part, arm, batch in work:
        measured = measure(
            Job(
                arm, part, batch, None, args.workspace_mib, device=args.device,
                repeats=args.repeats,
            )
        )  # fmt: skip
        is_whole = batch.B == shape.B
        rows.append(
            {
                "batch": name,
                "arm": arm,
                "label": ARMS[arm].label,
                "lattice": f"s_range {shape.s_range}" if part == "pruned" else "full",
                "utterances": f"{batch.B}" if is_whole else f"{batch.B} of {shape.B}",
                **asdict(measured),
                "mib_per_utterance": measured.peak_bytes / 2**20 / batch.B,
                "seconds_per_utterance": measured.seconds_min / batch.B,
            }
        )
        print(f"{name} {part} {ARMS[arm].label}: {measured.seconds:.1f} s", flush=True)
    return rows


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    check_counts(parser, args, "repeats", "full_utterances")
    settings = {
        "shapes": {name: vars(shape_with(PUBLIC[name], args)) for name in args.batches},
        "bound_gib": args.bound_gib,
        "workspace_mib": args.workspace_mib,
        "device": args.device,
    }
    with measuring("public", settings, args.json or results.default_path("public")) as rows:
        rows += [row for name in args.batches for row in bench_batch(name, args)]


if __name__ == "__main__":
    main()
