"""Every benchmark that README.md quotes, with the lane's Python that runs this: one command.

    .venvs/modern/bin/python scripts/bench_all.py      # about 16 minutes on two quiet cores
    .venvs/k2/bin/python scripts/bench_all.py          # about 20 minutes
    python scripts/bench_all.py --list                 # only say what would run

Each benchmark adds a session to its JSON file; run it again at another hour and tables print the
range. Then `plot_benchmarks.py` and `results_tables.py` write the figures and RESULTS.md anew. What
times is run first; what only measures memory (`capacity`) does not mind other work.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.packages import HAS_K2

SCRIPTS = Path(__file__).resolve().parent
TINY = "--B 2 --T 9 --S 3 --C 40 --H 8 --D 8 --repeats 1"


@dataclass(frozen=True)
class Benchmark:
    """One command.

    Attributes:
      name: for --only.
      words: script and arguments.
      minutes: on two quiet cores, by lane; None: not run in that lane.
      quick: arguments that make it a matter of seconds, for tests.
    """

    name: str
    words: str
    minutes: dict[str, float | None]
    quick: str


BASELINES = "--repeats 5 --arms panda panda-all-sites class-tiles row-tiles"
BESIDE_K2 = "--repeats 5 --parts whole --arms k2 panda panda-all-sites"
# Nothing else fits beside torchaudio's 13 GB.
PUBLIC_SHAPES = (
    "--public unsorted sorted --losses regular --arms torchaudio panda --cap-gib 18 --repeats 2"
)
BENCHMARKS = (
    Benchmark(
        "loss-trained", f"bench_loss.py --adjoints trained {BASELINES}",
        {"modern": 6, "k2": None}, "--H 64 --D 64 --repeats 1 --parts simple --arms panda",
    ),
    Benchmark(
        "loss-random", f"bench_loss.py {BASELINES}", {"modern": 7, "k2": None},
        f"{TINY} --parts simple --arms panda",
    ),
    Benchmark(
        "k2-trained", f"bench_loss.py --adjoints trained {BESIDE_K2}",
        {"modern": None, "k2": 6}, "--H 64 --D 64 --repeats 1 --parts simple --arms panda",
    ),
    Benchmark(
        "k2-random", f"bench_loss.py {BESIDE_K2}", {"modern": None, "k2": 6},
        f"{TINY} --parts simple --arms panda",
    ),
    Benchmark(
        "profile-trained", "bench_profile.py --adjoints trained --repeats 5",
        {"modern": 1.5, "k2": None}, "--H 64 --D 64 --repeats 1",
    ),
    Benchmark(
        "profile-random", "bench_profile.py --repeats 5", {"modern": 1.5, "k2": None}, TINY
    ),
    Benchmark(
        "recursion-trained", "bench_recursion.py --adjoints trained --repeats 7",
        {"modern": None, "k2": 1.5}, "--H 64 --D 64 --repeats 1",
    ),
    Benchmark(
        "classes",
        "bench_classes.py --arms dense panda class-tiles "
        "--classes 500 4336 16384 65536 131072 262144",
        {"modern": None, "k2": 4}, f"{TINY[:17]} --H 8 --D 8 --classes 30 60",
    ),
    Benchmark(
        "losses-peaked", "bench_losses.py --adjoints peaked", {"modern": None, "k2": 8},
        f"{TINY[:17]} --H 8 --D 8 --classes 30 --losses regular TDT --repeats 1",
    ),
    Benchmark(
        "losses-random", "bench_losses.py", {"modern": None, "k2": 8},
        f"{TINY[:17]} --H 8 --D 8 --classes 30 --losses regular --repeats 1",
    ),
    Benchmark(
        "public-peaked",
        f"bench_losses.py --adjoints peaked {PUBLIC_SHAPES}", {"modern": None, "k2": 15},
        f"{TINY[:17]} --H 8 --D 8 --repeats 1",
    ),
    Benchmark(
        "public-random", f"bench_losses.py {PUBLIC_SHAPES}", {"modern": None, "k2": 15},
        f"{TINY[:17]} --H 8 --D 8 --repeats 1",
    ),
    Benchmark(
        "ctc", "bench_ctc.py", {"modern": None, "k2": 2},
        "--B 2 --T 9 --D 8 --classes 30 --repeats 1",
    ),
    Benchmark(
        "capacity", "bench_capacity.py", {"modern": None, "k2": 4},
        "--C 50 --H 8 --D 8 --start 2 --longest 2",
    ),
)  # fmt: skip


def chosen(only: list[str] | None, lane: str) -> list[tuple[Benchmark, float]]:
    """What runs in a lane and its minutes."""
    return [
        (b, minutes)
        for b in BENCHMARKS
        if (minutes := b.minutes[lane]) is not None and (not only or b.name in only)
    ]


def command(benchmark: Benchmark, is_quick: bool, folder: Path | None) -> list[str]:
    """The words of a benchmark's process."""
    script, *words = shlex.split(benchmark.words)
    words += shlex.split(benchmark.quick) if is_quick else []
    words += ["--json", str(folder / f"{benchmark.name}.json")] if folder else []
    return [sys.executable, str(SCRIPTS / script), *words]


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--only", nargs="+", choices=[b.name for b in BENCHMARKS])
    p.add_argument("--list", action="store_true", help="print the commands, run nothing")
    p.add_argument("--quick", action="store_true", help="tiny sizes: that it runs, not how fast")
    p.add_argument("--out", type=Path, help="folder for the JSON files; scripts/results/ otherwise")
    args = p.parse_args()
    if args.quick and args.out is None:
        p.error("--quick: its figures mean nothing; give --out, a folder for them")
    runs = chosen(args.only, "k2" if HAS_K2 else "modern")
    print(f"{len(runs)} benchmarks, about {sum(minutes for _, minutes in runs):g} minutes")
    failed = []
    for benchmark, minutes in runs:
        words = command(benchmark, args.quick, args.out)
        script = f"scripts/{Path(words[1]).name}"
        print(f"# {minutes:g} min: {shlex.join(['python', script, *words[2:]])}", flush=True)
        if args.list:
            continue
        begin = time.perf_counter()
        if subprocess.run(words, check=False).returncode:
            failed.append(benchmark.name)
        print(f"# {benchmark.name}: {(time.perf_counter() - begin) / 60:.1f} min", flush=True)
    if args.list:
        return
    for script in ("plot_benchmarks.py", "results_tables.py"):
        words = [sys.executable, str(SCRIPTS / script)]
        words += ["--results", str(args.out)] if args.out else []
        if subprocess.run(words, check=False).returncode:
            failed.append(script)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see the messages above")


if __name__ == "__main__":
    main()
