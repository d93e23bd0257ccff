"""The transducer loss, forward and backward, dense against selected: memory, time, agreement.

    python scripts/bench_loss.py --corpus aishell
    python scripts/bench_loss.py --corpus aishell --adjoints trained --checkpoint EXP/epoch-5.pt

Three parts: `whole`, the recipes' `0.5 * simple + pruned` from encoder and decoder outputs, with
the simple loss's band; `simple` and `pruned`, its halves. All methods run the same module
(benchmarks/model.py); dense is k2's own code (the project's twin of it where k2 is missing).

Memory: each method in a fresh process, peak above inputs and parameters, all gradients included.
Time: all methods in one process, interleaved, medians, after a round that compares losses and
gradients with the dense ones.

`--adjoints random` has random inputs and weights: nearly every site inside the boundary has an
adjoint. `trained` has those of a model of egs/tones, whose head has 4336 classes from the start, of
which the corpus uses 100 (see tones_tokenizer.py). About 25 minutes on one core:

    prepare=egs/tones/ASR/pruned_transducer/prepare.py
    python $prepare --data-dir DATA --vocab-size 100 --num-train 4000
    python scripts/tones_tokenizer.py --data-dir DATA --pieces 100 --classes 4336
    OMP_NUM_THREADS=1 panda-icefall run egs/tones/ASR/pruned_transducer/train.py --use-panda 1 \\
      --data-dir DATA --exp-dir EXP --vocab-size 4336 --encoder-dim 512 --decoder-dim 512 \\
      --joiner-dim 512 --num-encoder-layers 2 --max-duration 20 --num-epochs 5
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks import results, tables
from benchmarks.agreement import Reference
from benchmarks.arms import ARMS, Step, arms_of
from benchmarks.child import Job, measure
from benchmarks.chosen_inputs import add_inputs, chosen_inputs, settings_of
from benchmarks.inputs import LossInputs
from benchmarks.options import check_counts, make_parser
from benchmarks.timing import interleaved_medians

import panda_icefall

PARTS = ("whole", "simple", "pruned")
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
            Job(arm, part, inputs.shape, str(path), args.workspace_mib, device=args.device)
        )
        for arm in arms
    }
    steps = {arm: Step.make(arm, part, inputs, args.workspace_mib) for arm in arms}
    reference = Reference(steps["dense"])
    agreements = {arm: reference.against(steps[arm]) for arm in arms}
    seconds = interleaved_medians(
        {arm: step.run for arm, step in steps.items()}, args.repeats, device
    )
    return [
        {
            "part": part,
            "arm": arm,
            "label": ARMS[arm].label,
            **asdict(peaks[arm]),
            **asdict(agreements[arm]),
            "seconds": seconds[arm],
            # Resident memory need not grow at all for a batch of a few sites.
            "memory_ratio": peaks["dense"].peak_bytes / peaks[arm].peak_bytes
            if peaks[arm].peak_bytes
            else None,
            "time_ratio": seconds[arm] / seconds["dense"],
        }
        for arm in arms
    ]


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    check_counts(parser, args, "repeats")
    inputs = chosen_inputs(parser, args)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.pt"
        inputs.save(path)
        for part in args.parts:
            arms = [a for a in arms_of(part) if not args.arms or a in ("dense", *args.arms)]
            rows += bench_part(part, arms, inputs, path, args)
    settings = {**settings_of(args, inputs), "carrying_share": carrying_share(inputs)}
    figures = results.document("loss", settings, rows)
    results.print_table(tables.title(figures), figures, tables.COLUMNS["loss"])
    results.write(figures, args.json or results.default_path("loss", args.corpus, args.adjoints))


if __name__ == "__main__":
    main()
