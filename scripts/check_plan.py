"""Are the figures of `panda-icefall plan` those of a process? Predicted against measured peaks.

    python scripts/check_plan.py

Each row is a whole transducer loss (simple and pruned), forward and backward, all utterances of one
length. Its peak is what torch's allocator gave out above inputs and parameters, all gradients
included, as its profiler counts it: scratch counts in full, as it does on a GPU, and other work of
the machine does not matter. The batches have more sites than one tile holds, as those of training
have. Writes scripts/results/plan.json, which tests/runs/planning holds against the planner.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from benchmarks.child import step_of
from benchmarks.inputs import LossInputs
from benchmarks.shapes import LossShape

from panda_icefall.normalizer.workspace import MIB
from panda_icefall.runs.planning.loss_memory import (
    Batch,
    LossSizes,
    dense_memory,
    routed_memory,
)

RESULTS = Path(__file__).parent / "results" / "plan.json"
# AISHELL's batches, WenetSpeech's short ones, long utterances of few classes, many classes, another
# joiner.
SHAPES = (
    LossShape(B=8, T=100, S=14, C=4336, shortest=1.0),
    LossShape(B=16, T=40, S=10, C=5537, shortest=1.0),
    LossShape(B=4, T=300, S=60, C=500, shortest=1.0),
    LossShape(B=4, T=60, S=12, C=16384, shortest=1.0),
    LossShape(B=16, T=60, S=16, C=4336, H=256, D=384, s_range=8, shortest=1.0),
)
WORKSPACES_MIB = (8.0, 32.0)


def predicted(shape: LossShape, workspace_mib: float | None) -> int:
    """Bytes by the planner; dense without a workspace."""
    batch = Batch(shape.B, shape.T, shape.S)
    sizes = LossSizes(shape.C, shape.H, shape.D, shape.D, shape.s_range)
    if workspace_mib is None:
        return sum(dense_memory(batch, sizes).values())
    return sum(routed_memory(batch, sizes, int(workspace_mib * MIB), on_gpu=False).values())


def measured(shape: LossShape, workspace_mib: float | None) -> int:
    """Bytes that the allocator gave out at the peak of one forward and backward."""
    arm = "dense" if workspace_mib is None else "panda"
    inputs = LossInputs.random(shape, torch.device("cpu"))
    step = step_of(arm, "whole", inputs, workspace_mib)
    inputs.parameters = None
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step.run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return peak_of([event for event in events if event.get("name") == "[memory]"])


def peak_of(events: list[dict[str, Any]]) -> int:
    """The most that was there at a time, of what was allocated while the profiler looked on."""
    sizes: dict[int, int] = {}
    now = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        now += size if size > 0 else -sizes.pop(address, 0)
        if size > 0:
            sizes[address] = size
        peak = max(peak, now)
    return peak


def compare(shape: LossShape, workspace_mib: float | None) -> dict[str, Any]:
    """One row."""
    size, peak = predicted(shape, workspace_mib), measured(shape, workspace_mib)
    row = {
        "arm": "dense" if workspace_mib is None else "panda",
        "workspace_mib": workspace_mib,
        "shape": asdict(shape),
        "measured_bytes": peak,
        "predicted_bytes": size,
        "error": size / peak - 1,
    }
    print(
        f"{row['arm']:5} C={shape.C} B={shape.B} T={shape.T} workspace {workspace_mib} MiB: "
        f"measured {peak / MIB:.1f} MiB, predicted {size / MIB:.1f} MiB ({row['error']:+.1%})",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = [compare(shape, w) for shape in SHAPES for w in (*WORKSPACES_MIB, None)]
    content = {
        "command": "python scripts/check_plan.py",
        "machine": f"cpu, Python {platform.python_version()}, torch {torch.__version__}",
        "rows": rows,
        "largest_error": max(abs(row["error"]) for row in rows),
    }
    args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
