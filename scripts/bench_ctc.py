"""A CTC head, forward and backward, dense against routed: memory, time, agreement.

    python scripts/bench_ctc.py

The head of icefall's zipformer, dropout, linear layer and log-softmax, and torch's ctc_loss: as it
is, and with `panda_icefall.apply(model, ctc=True)`. Each label is drawn from all classes; the
utterances have from `--shortest` of the frames to all of them, and a label to every three frames.

Memory: each method in a fresh process, peak above inputs and parameters, all gradients included.
Time: both methods in one process, interleaved, after a round that compares losses and gradients
with the dense ones of a lattice in float64: torch's own in float32 is off by eps times the loss.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks import results
from benchmarks.memory import CHILD_ENVIRONMENT, PeakMeter
from benchmarks.options import at_least, make_parser
from benchmarks.precision import autocast, float32_products
from benchmarks.tables import measuring
from benchmarks.timing import interleaved_samples, times
from torch import Tensor, nn

import panda_icefall
from panda_icefall.runs.contract.dense_losses import ctc_losses_in_float64

ARMS = {"dense": "dense", "panda": "PANDA"}
FRAMES_PER_LABEL = 3


@dataclass(frozen=True)
class Shape:
    """Of one batch: B utterances of up to T frames, C classes, D numbers of a frame."""

    B: int
    T: int
    C: int
    D: int
    shortest: float
    device: str = "cpu"


class CtcLoss(nn.Module):
    """As `forward_ctc` of icefall's zipformer/model.py, with a batch to call it with."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.ctc_output = nn.Sequential(
            nn.Dropout(p=0.1), nn.Linear(shape.D, shape.C), nn.LogSoftmax(dim=-1)
        )
        self.encoder_out = torch.randn(shape.B, shape.T, shape.D)
        self.frames = torch.linspace(shape.shortest, 1, shape.B).mul(shape.T).round().int()
        self.counts = self.frames // FRAMES_PER_LABEL
        self.targets = torch.randint(1, shape.C, (int(self.counts.sum()),)).int()
        self.to(shape.device)
        self.encoder_out = self.encoder_out.to(shape.device).requires_grad_()

    def forward(self) -> Tensor:
        ctc_output = self.ctc_output(self.encoder_out)
        return nn.functional.ctc_loss(
            log_probs=ctc_output.permute(1, 0, 2),
            targets=self.targets,
            input_lengths=self.frames,
            target_lengths=self.counts,
            reduction="sum",
        )

    def step(self, precision: str) -> list[Tensor]:
        """The loss and all gradients, of one draw of the dropout."""
        torch.manual_seed(2)
        with float32_products(precision):
            with autocast(precision, self.encoder_out.device):
                loss = self()
            leaves = [self.encoder_out, *self.parameters()]
            return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def applied(arm: str, model: CtcLoss, workspace_mib: float | None) -> Any:
    """A block in which the model computes as one method does."""
    if arm == "dense":
        return contextlib.nullcontext()
    return panda_icefall.patched(model, ctc=True, strict=True, workspace_mib=workspace_mib)


def peak_here(arm: str, shape: Shape, workspace_mib: float | None, precision: str) -> int:
    """Bytes of one step at its peak, in this process, in which nothing else ran."""
    small = CtcLoss(Shape(2, 9, 8, 8, 1.0, shape.device))
    with applied(arm, small, workspace_mib):
        small.step(precision)
    model = CtcLoss(shape)
    meter = PeakMeter(torch.device(shape.device))
    with applied(arm, model, workspace_mib):
        meter.start()
        found = model.step(precision)
        peak = meter.peak_bytes()
    del found
    return peak


def peak_of(arm: str, shape: Shape, workspace_mib: float | None, precision: str) -> int:
    """``peak_here`` in a fresh process.

    Raises:
      RuntimeError: the process failed.
    """
    given = json.dumps([arm, asdict(shape), workspace_mib, precision])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--child", given],
        capture_output=True,
        text=True,
        env={**os.environ, **CHILD_ENVIRONMENT},
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{given}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    return int(done.stdout.split()[-1])


def bench(shape: Shape, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per method."""
    peaks = {arm: peak_of(arm, shape, args.workspace_mib, args.dtype) for arm in ARMS}
    model = CtcLoss(shape)

    def step_of(arm: str) -> list[Tensor]:
        with applied(arm, model, args.workspace_mib):
            return model.step(args.dtype)

    found = {arm: step_of(arm) for arm in ARMS}
    with ctc_losses_in_float64():
        exact_loss, *exact_grads = model.step("fp32")
    works = {arm: lambda arm=arm: step_of(arm) for arm in ARMS}
    samples = interleaved_samples(works, args.repeats, torch.device(args.device), args.warm_ups)
    timed = {arm: times(seconds) for arm, seconds in samples.items()}
    rows = []
    for arm, label in ARMS.items():
        loss, *grads = found[arm]
        difference = sum((g - e).double().square().sum() for g, e in zip(grads, exact_grads))
        norm = sum(e.double().square().sum() for e in exact_grads)
        rows.append(
            {
                "C": shape.C,
                "arm": arm,
                "label": label,
                "is_out_of_memory": False,
                "peak_bytes": peaks[arm],
                "memory_ratio": peaks["dense"] / peaks[arm] if peaks[arm] else None,
                **timed[arm],
                "time_ratio": timed[arm]["seconds_min"] / timed["dense"]["seconds_min"],
                "loss_rel": float((loss - exact_loss).abs() / exact_loss.abs()),
                "grad_rel_l2": float((difference / norm) ** 0.5),
            }
        )
        print(f"C={shape.C} {label}: {peaks[arm] / 2**20:.0f} MiB", flush=True)
    return rows


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__)
    p.add_argument("--B", type=at_least(1), default=20)
    p.add_argument("--T", type=at_least(1), default=375)
    p.add_argument("--D", type=at_least(1), default=512)
    p.add_argument("--shortest", type=float, default=0.7)
    p.add_argument("--classes", type=at_least(2), nargs="+", default=[500, 4336])
    return p


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        arm, shape, workspace_mib, precision = json.loads(sys.argv[2])
        print(peak_here(arm, Shape(**shape), workspace_mib, precision))
        return
    parser = get_parser()
    args = parser.parse_args()
    settings = {
        "shape": {"B": args.B, "T": args.T, "D": args.D, "shortest": args.shortest},
        "workspace_mib": args.workspace_mib,
        "device": args.device,
        "dtype": args.dtype,
    }
    target = args.json or results.default_path("ctc", device=args.device, dtype=args.dtype)
    with measuring("ctc", settings, target) as rows:
        for C in args.classes:
            rows += bench(Shape(args.B, args.T, C, args.D, args.shortest, args.device), args)


if __name__ == "__main__":
    main()
