"""Plant one bug after another and show which test catches it.

    python scripts/mutations.py                      # all of them
    python scripts/mutations.py --only "stale log_z" "dropped clamp"

A bug is caught where an example of a property (tests/support/drawn), or a numerical gate
(tests/support/gates.py), fails an assertion that it passes without the bug; the bugs are those of
tests/support/mutants. Exit status: 1 where one survives, or where a property or a gate fails
without any. Needs hypothesis and pytest.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import mutants
import torch


def get_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [mutation.name for mutation in mutants.MUTATIONS]
    p.add_argument("--only", nargs="+", choices=names, default=names, metavar="BUG")
    p.add_argument("--examples", type=int, default=mutants.EXAMPLES, help="at most, of a bug")
    return p


def main() -> int:
    args = get_parser().parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of names that tests have bound
    chosen = [mutation for mutation in mutants.MUTATIONS if mutation.name in args.only]
    print(
        "| bug | planted in | caught by | examples | seconds |\n|---|---|---|---|---|", flush=True
    )
    verdicts = []
    for mutation in chosen:
        found = mutants.verdict(mutation, args.examples)
        verdicts.append(found)
        caught_by = mutation.caught_by if found.is_caught else "NOTHING"
        columns = [mutation.name, f"`{mutation.where}`", caught_by, str(found.examples)]
        print(f"| {' | '.join(columns)} | {found.seconds:.1f} |", flush=True)
        if not found.is_caught:
            print(found.text.strip()[-2000:] or "  passes", flush=True)
    survivors = [found.mutation.name for found in verdicts if not found.is_caught]
    broken = mutants.broken_without_a_bug(verdicts)
    for text in broken:
        print(f"fails without a bug: {text}", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught; survive: {survivors or 'none'}")
    return int(bool(survivors or broken))


if __name__ == "__main__":
    raise SystemExit(main())
