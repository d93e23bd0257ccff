"""Loss and memory of a dense and a routed run side by side: a table and a PNG.

    python scripts/plot_runs.py --dense A/memory.jsonl --panda B/memory.jsonl --png out.png

Reads the memory logs that `panda-icefall run --panda-memory-log FILE` writes.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from panda_icefall.runs.memory.reading import read_last_run

PHASES = ("compute_loss", "backward_update")
COLOURS = {"dense": "#8a8f98", "panda": "#c2410c"}


@dataclass(frozen=True)
class Run:
    """Per training step, in order: loss per frame, peak in MiB, seconds."""

    loss: list[float]
    peak_mib: list[float]
    seconds: list[float]
    on_gpu: bool

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a log's last run; a step counts when both its phases were written."""
        steps: dict[int, dict[str, dict]] = {}
        for row in read_last_run(path):
            if row["row"] == "phase" and "error" not in row:
                steps.setdefault(row["step"], {})[row["phase"]] = row
        complete = [step for _, step in sorted(steps.items()) if len(step) == len(PHASES)]
        if not complete:
            raise SystemExit(f"{path}: no complete training step; was the run stopped at once?")
        on_gpu = "peak_bytes" in complete[0][PHASES[0]]
        field = "peak_bytes" if on_gpu else "peak_rss_bytes"
        return cls(
            loss=[s[PHASES[0]]["loss"] / s[PHASES[0]]["frames"] for s in complete],
            peak_mib=[max(s[p][field] for p in PHASES) / 2**20 for s in complete],
            seconds=[sum(s[p]["seconds"] for p in PHASES) for s in complete],
            on_gpu=on_gpu,
        )


def print_table(runs: dict[str, Run]) -> None:
    table = Table(title="one training process, dense and with PANDA")
    for column in ("run", "steps", "last loss per frame", "peak memory", "median s/step"):
        table.add_column(column, justify="left" if column == "run" else "right")
    for name, run in runs.items():
        table.add_row(
            name,
            str(len(run.loss)),
            f"{run.loss[-1]:.4f}",
            f"{max(run.peak_mib):.0f} MiB",
            f"{statistics.median(run.seconds):.2f}",
        )
    Console(width=100).print(table)
    pairs = list(zip(runs["dense"].loss, runs["panda"].loss))
    apart = max(abs(a - b) / abs(a) for a, b in pairs)
    print(f"largest relative difference of the loss over {len(pairs)} steps: {apart:.1e}")


def plot(runs: dict[str, Run], png: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (losses, memory) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    for name, run in runs.items():
        steps = range(1, len(run.loss) + 1)
        is_dense = name == "dense"
        style = {"color": COLOURS[name], "lw": 4 if is_dense else 1.6, "label": name}
        losses.plot(steps, run.loss, **style)
        memory.plot(steps, run.peak_mib, **{**style, "lw": 1.8})
    losses.set(title="Training loss (the curves coincide)", xlabel="step", ylabel="loss per frame")
    what = "GPU memory" if runs["dense"].on_gpu else "process memory (RSS)"
    memory.set(title=f"Peak {what} per step", xlabel="step", ylabel="MiB")
    memory.set_ylim(bottom=0)
    for axes in (losses, memory):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", type=Path, required=True, help="memory log of the dense run")
    parser.add_argument("--panda", type=Path, required=True, help="memory log of the routed run")
    parser.add_argument("--png", type=Path, required=True, help="figure to write")
    args = parser.parse_args()
    runs = {"dense": Run.read(args.dense), "panda": Run.read(args.panda)}
    print_table(runs)
    plot(runs, args.png)


if __name__ == "__main__":
    main()
