"""Many random examples of every loss against float64 oracles, in two processes.

    python scripts/run_properties.py                           # 10,000 examples
    python scripts/run_properties.py --examples 500 --seed 7   # fewer, the same ones again
    python scripts/run_properties.py --only "full lattice" --jobs 1

Needs hypothesis (`pip install -r scripts/requirements-modern.txt`, or that of the k2 lane).

Each example draws a batch, a joiner and the options of a loss, and asserts values, gradients, the
counters of what was routed, and that no tensor was larger than the workspace, or than what is there
beside the tiles. The properties are those of tests/support/drawn. A failed example is made smaller
and printed. Exit status: 1 where one failed.
"""

from __future__ import annotations

import argparse
import logging
import platform
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import torch
from drawn import runs

from panda_icefall.runs.atomic_file import replace_json


def get_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--examples", type=int, default=10_000)
    p.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    p.add_argument("--seed", type=int, help="default: drawn, and printed")
    p.add_argument("--only", choices=runs.PROPERTIES, help="one property")
    p.add_argument("--piece", type=int, default=200, help="examples between two lines of progress")
    p.add_argument("--json", type=Path, help="where the result is written")
    return p


def piece(name: str, examples: int, seed: int) -> runs.Run:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of names that tests have bound
    return runs.run(name, examples, seed)


def summed(found: list[runs.Run]) -> dict[str, Any]:
    """What the pieces of one property come to."""
    facts = Counter[str]()
    for run in found:
        facts.update(run.facts)
    return {
        "examples": sum(run.examples for run in found),
        "seconds": round(sum(run.seconds for run in found), 1),
        "facts": dict(facts),
        "failures": [{"seed": run.seed, "text": run.failure} for run in found if run.failure],
    }


def main() -> int:
    parser = get_parser()
    args = parser.parse_args()
    for name in ("examples", "jobs", "piece"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: got {getattr(args, name)}, expected at least 1")
    if args.json is not None and args.json.is_dir():
        parser.error(f"--json: got {args.json}, a folder; expected a file")
    seed = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    names = list(runs.PROPERTIES) if args.only is None else [args.only]
    pieces = runs.split(args.examples, args.piece, names)
    total = sum(examples for _, examples in pieces)
    print(f"{total} examples of {len(names)} properties, seed {seed}", flush=True)
    started, done = time.perf_counter(), 0
    found: dict[str, list[runs.Run]] = {name: [] for name in names}
    result = result_of(found, seed, 0.0)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(piece, *job, seed + i) for i, job in enumerate(pieces)]
        for future in as_completed(asked):
            run = future.result()
            found[run.name].append(run)
            done += run.examples
            elapsed = time.perf_counter() - started
            print(f"{elapsed:7.0f} s  {done:6d} of {total}  {run.name}", flush=True)
            if run.failure:
                print(run.failure, flush=True)
            result = result_of(found, seed, elapsed)
            if args.json is not None:  # after every piece: an interrupted run keeps what it did
                replace_json(args.json, result)
    for name, row in result["properties"].items():
        facts = ", ".join(f"{what}: {count}" for what, count in row["facts"].items())
        print(f"{name}: {row['examples']} examples, {len(row['failures'])} failed  {facts}")
    print(f"{done} examples, {result['mismatches']} mismatches, seed {seed}")
    return int(result["mismatches"] > 0)


def result_of(found: dict[str, list[runs.Run]], seed: int, seconds: float) -> dict[str, Any]:
    """What the JSON file says of the pieces that are done."""
    done = [run for some in found.values() for run in some]
    return {
        "examples": sum(run.examples for run in done),
        "mismatches": sum(bool(run.failure) for run in done),
        "seed": seed,
        "minutes": round(seconds / 60, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "properties": {name: summed(some) for name, some in found.items() if some},
    }


if __name__ == "__main__":
    raise SystemExit(main())
