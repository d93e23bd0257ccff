"""Two checkouts of this project against each other: memory and time of the routed losses.

    git worktree add ../before COMMIT
    python scripts/bench_versions.py ../before
    python scripts/bench_versions.py ../before --adjoints trained --repeats 9

Each checkout has a process of its own, with its own package and its own benchmark code; they take
turns, one step each, so that whatever else the machine does meets both. The inputs are those of
bench_loss.py, the same for both, and losses and gradients are compared. Peaks are of further,
fresh processes. For a change that must not cost time or memory; CPU only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from benchmarks import results
from benchmarks.chosen_inputs import add_inputs, chosen_inputs, settings_of
from benchmarks.inputs import saved
from benchmarks.model import PARTS
from benchmarks.options import make_parser
from benchmarks.tables import measuring
from benchmarks.timing import times

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "scripts" / "benchmarks" / "turns.py"


def get_parser() -> argparse.ArgumentParser:
    p = make_parser(__doc__, devices=("cpu",))
    p.add_argument("before", type=Path, help="root of the other checkout")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=["whole"])
    add_inputs(p)
    return p


class Turns:
    """The process of one checkout.

    Attributes:
      peak_bytes: of a fresh process, above the inputs.
      outputs: loss and gradients by name.
    """

    def __init__(self, root: Path, part: str, inputs: Path) -> None:
        path = os.pathsep.join([str(root), str(root / "scripts")])
        with tempfile.TemporaryDirectory() as folder:
            outputs = Path(folder) / "outputs.pt"
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), part, str(inputs), str(outputs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": path},
                cwd=root,  # which Python's -m of the worker's own processes looks into first
            )
            self.root = root
            self.peak_bytes = int(self._answer()["peak_bytes"])
            self.outputs: dict[str, torch.Tensor] = torch.load(outputs)

    def __enter__(self) -> Turns:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def seconds(self) -> float:
        """Of one more run."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.root}: its process ended, status {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


def compared(part: str, inputs: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per checkout."""
    with ExitStack() as stack:
        turns = {
            name: stack.enter_context(Turns(root, part, inputs))
            for name, root in (("before", args.before.resolve()), ("now", ROOT))
        }
        samples: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(args.repeats):
            for name, turn in turns.items():
                samples[name].append(turn.seconds())
        apart = distance(turns["now"].outputs, turns["before"].outputs)
    timed = {name: times(found) for name, found in samples.items()}
    peaks = {name: turn.peak_bytes for name, turn in turns.items()}
    return [
        {
            "part": part,
            "version": name,
            "peak_bytes": peaks[name],
            **timed[name],
            "memory_ratio": peaks[name] / peaks["before"] if peaks["before"] else None,
            "time_ratio": timed[name]["seconds_min"] / timed["before"]["seconds_min"],
            "median_ratio": timed[name]["seconds"] / timed["before"]["seconds"],
            **(apart if name == "now" else {}),
        }
        for name in turns
    ]


def distance(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> dict[str, float]:
    """How far loss and gradients moved.

    Raises:
      SystemExit: they are not of the same tensors.
    """
    if now.keys() != before.keys():
        raise SystemExit(f"gradients of {sorted(now)}, before of {sorted(before)}")
    old, new = before.pop("loss").double(), now.pop("loss").double()
    worst = max(
        (float((now[name] - before[name]).norm() / before[name].norm()) for name in now), default=0
    )
    return {"loss_rel": float((new - old).abs() / old.abs()), "worst_grad_rel_l2": worst}


def commit(root: Path) -> str:
    """The commit of a checkout, with a ``+`` where files of it were changed."""
    words = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=10"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = get_parser()
    args = parser.parse_args()
    if not (args.before / "panda_icefall" / "__init__.py").is_file():
        parser.error(f"before: got {args.before}, expected the root of a checkout of this project")
    if (args.dtype, args.workspace_mib) != ("fp32", None):
        parser.error("--dtype, --workspace-mib: only their defaults are compared")
    inputs = chosen_inputs(parser, args)
    settings = {**settings_of(args, inputs), "before": commit(args.before)}
    words = ("versions", args.corpus, args.adjoints)
    target = args.json or results.default_path(*words, device="cpu", dtype="fp32")
    facts = {"now": commit(ROOT)}
    with measuring("versions", settings, target, facts) as rows, saved(inputs) as path:
        for part in args.parts:
            rows += compared(part, path, args)


if __name__ == "__main__":
    main()
