"""Peak memory and time of the pruned loss, forward and backward, dense against selected.

    python scripts/bench_loss.py --json out/bench_loss.json

Both arms run the same lines, those of icefall's forward_transducer after the simple loss:
do_rnnt_pruning, output_linear(tanh(am + lm)), rnnt_loss_pruned, backward. The dense arm is k2's own
(the project's twin of it where k2 is not installed). Memory: each arm in a fresh process, peak RSS
above the inputs, gradients included (Linux: the peak is reset through /proc/self/clear_refs).
Time: both arms in one process, interleaved, median.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import panda_icefall
from panda_icefall.routing import reset_counters
from panda_icefall.routing.patch import STAND_IN

# "all sites": adjoint_tolerance 0, every site with an adjoint above 0 goes through backward.
ARMS = ("dense", "panda", "panda, all sites")
HAS_K2 = importlib.util.find_spec("k2") is not None


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("B", 20), ("T", 150), ("S", 14), ("s-range", 5), ("C", 4336), ("H", 512)):
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument(
        "--ragged", type=int, default=0, help="1: utterance lengths spread over [1/2, 1]"
    )
    p.add_argument("--workspace-mib", type=float, default=8.0)
    p.add_argument("--repeats", type=int, default=7, help="timed runs of each arm")
    p.add_argument("--json", type=Path, help="write the figures here")
    p.add_argument("--measure-arm", choices=ARMS, help=argparse.SUPPRESS)
    return p


def k2_module() -> Any:
    return importlib.import_module("k2" if HAS_K2 else STAND_IN)


class Problem:
    """Inputs of one loss: projections, head, and ranges from a random simple loss."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        B, T, S, C, H = args.B, args.T, args.S, args.C, args.H
        self.am = torch.randn(B, T, H).requires_grad_()
        self.lm = torch.randn(B, S + 1, H).requires_grad_()
        self.head = torch.nn.Linear(H, C)
        share = torch.linspace(0.5, 1.0, B) if args.ragged else torch.ones(B)
        self.boundary = torch.zeros(B, 4, dtype=torch.int64)
        self.boundary[:, 2] = (share * S).round().long()
        self.boundary[:, 3] = (share * T).round().long()
        self.symbols = torch.randint(1, C, (B, S))
        k2 = k2_module()
        with torch.no_grad():
            _, grads = k2.rnnt_loss_smoothed(
                lm=torch.randn(B, S + 1, C), am=torch.randn(B, T, C), symbols=self.symbols,
                termination_symbol=0, boundary=self.boundary, return_grad=True,
            )  # fmt: skip
            self.ranges = k2.get_rnnt_prune_ranges(*grads, self.boundary, args.s_range)

    def step(self) -> float:
        """Forward and backward, from no gradients."""
        k2 = k2_module()
        for tensor in (self.am, self.lm, *self.head.parameters()):
            tensor.grad = None
        am, lm = k2.do_rnnt_pruning(am=self.am, lm=self.lm, ranges=self.ranges)
        logits = self.head(torch.tanh(am + lm))
        loss = k2.rnnt_loss_pruned(
            logits=logits.float(), symbols=self.symbols, ranges=self.ranges, termination_symbol=0,
            boundary=self.boundary, reduction="sum",
        )  # fmt: skip
        loss.backward()
        return loss.item()


def arm_context(arm: str, args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    if arm == "dense":
        return contextlib.nullcontext()
    tolerance = 0.0 if arm == "panda, all sites" else None
    return panda_icefall.patched(args.workspace_mib, adjoint_tolerance=tolerance)


def status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure_arm(args: argparse.Namespace) -> None:
    """In a process of its own: print the peak above the inputs, in bytes."""
    small = argparse.Namespace(**{**vars(args), "B": 2, "T": 6, "S": 4, "C": 50, "H": 16})
    with arm_context(args.measure_arm, args):
        Problem(small).step()  # libraries load their code before the measurement
        problem = Problem(args)
        reset_counters()
        before = status_kib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        loss = problem.step()
        peak_bytes = (status_kib("VmHWM") - before) * 1024
        status = panda_icefall.status()
        share = status.sites_backward / status.sites if status.sites else 1.0
        print(json.dumps({"peak_bytes": peak_bytes, "loss": loss, "backward_share": share}))


def peak(arm: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--measure-arm", arm]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def times(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each arm."""
    problem = Problem(args)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(args.repeats + 1):
        for arm in ARMS:
            with arm_context(arm, args):
                start = time.perf_counter()
                problem.step()
                if repeat:  # the first round warms up
                    seconds[arm].append(time.perf_counter() - start)
    return {arm: statistics.median(values) for arm, values in seconds.items()}


def main() -> None:
    args = parser().parse_args()
    if args.measure_arm:
        measure_arm(args)
        return
    peaks = {arm: peak(arm) for arm in ARMS}
    seconds = times(args)
    dense_name = "k2" if HAS_K2 else "dense twin"
    figures: dict[str, Any] = {
        "shape": {k: getattr(args, k) for k in ("B", "T", "S", "s_range", "C", "H", "ragged")},
        "workspace_mib": args.workspace_mib,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "dense": dense_name,
        "arms": {
            arm: {
                "loss": peaks[arm]["loss"],
                "peak_mib": peaks[arm]["peak_bytes"] / 2**20,
                "seconds": seconds[arm],
                "backward_share": peaks[arm]["backward_share"],
                "memory_ratio": peaks["dense"]["peak_bytes"] / peaks[arm]["peak_bytes"],
                "time_ratio": seconds[arm] / seconds["dense"],
            }
            for arm in ARMS
        },
    }
    table = Table(title=f"pruned loss, forward + backward: {figures['shape']}")
    table.add_column("arm")
    for column in ("loss", "sites in backward", "peak above inputs", "seconds", "memory", "time"):
        table.add_column(column, justify="right")
    for arm, row in figures["arms"].items():
        table.add_row(
            dense_name if arm == "dense" else arm,
            f"{row['loss']:.2f}",
            f"{row['backward_share']:.0%}",
            f"{row['peak_mib']:.1f} MiB",
            f"{row['seconds']:.3f}",
            f"1/{row['memory_ratio']:.1f}",
            f"{row['time_ratio']:.2f}x",
        )
    Console(width=110).print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
