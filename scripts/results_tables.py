"""RESULTS.md from the figures of the benchmarks: the exact command and the table of each.

python scripts/results_tables.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import results, tables

HEAD = """# Results of the benchmarks

Written by `scripts/results_tables.py` from the JSON files in this folder, which keep every sample;
each section begins with the command that made it. Two numbers with "to" are the range over the
sessions, which a line under the command counts. Peaks are above inputs and parameters, all
gradients included.

What it is measured against. *dense as k2 of 2025* computes what k2 of July 2025 does, operation by
operation on the tensors of C classes (`scripts/benchmarks/k2_of_2025.py`); ratios "of dense" are
by it. *k2 1.23.4* is the k2 of 2022 that the k2 lane has; its simple loss is far slower. *PANDA*
leaves out the smallest adjoints up to 2^-24 of their sum, *PANDA, tolerance 0* only those that are
zero. Baselines are written from the published schemes, with the dense simple loss beside them.

Times: the minimum is what a quiet machine takes, as other work only adds to it; the dense loss is
bound by memory traffic, so that a busy hour moves the ratio of medians by a factor of two. *GEMM
limit* is the time of PANDA's own matrix products in the same process, by plain `torch.mm` and
`torch.bmm` at the sizes of its tiles: one product forward over the sites that are evaluated, three
backward over those that matter, and the simple loss's.

Every transducer loss: *dense* has the logits of all sites and the project's own lattice
(`scripts/benchmarks/dense_losses.py`). *Peaked* is a model that is sure of an alignment
(`scripts/benchmarks/peaked_inputs.py`). OOM: more than the cap that the title names.

Trained adjoints are those of a small model of egs/tones, shipped as
`scripts/benchmarks/trained_inputs.npz`; see `scripts/make_trained_inputs.py`.

Frames with another band: each method prunes by its own simple loss's occupations. Where two
windows of states tie but for rounding, as on random inputs, its pruned loss is one over other sites
there, and the distance of the whole loss and its gradients is that of another band, not of
rounding; the halves are compared on the same band.
"""


def section(name: str, figures: dict[str, Any]) -> str:
    """Title, figures, command, machine and table of one document."""
    benchmark = figures["benchmark"]
    columns = tables.COLUMNS[benchmark]
    rows = [
        [column.title for column in columns],
        ["---"] * len(columns),
        *results.cells(figures, columns, tables.KEYS[benchmark]),
    ]
    sessions = figures["sessions"]
    machine = ", ".join(f"{key} {value}" for key, value in sessions[-1]["machine"].items())
    dates = ", ".join(session["date"] for session in sessions)
    commands = "\n".join(dict.fromkeys(session["command"] for session in sessions))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    title = f"## {tables.title(figures)} ({sessions[-1]['machine']['lane']} lane)"
    count = "1 session" if len(sessions) == 1 else f"{len(sessions)} sessions"
    source = f"`{name}`: {count} ({dates}); {machine}."
    return "\n".join([title, "", f"```\n{commands}\n```", "", source, "", *lines])


def read(path: Path) -> dict[str, Any]:
    """One document.

    Raises:
      SystemExit: it is not one that the benchmarks wrote.
    """
    figures = results.read(path)
    if figures.get("benchmark") not in tables.COLUMNS:
        raise SystemExit(
            f"{path}: got benchmark {figures.get('benchmark')!r}, expected one of "
            f"{', '.join(tables.COLUMNS)}; delete the file or measure again"
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder of JSON")
    folder = parser.parse_args().results
    paths = results.documents(folder)
    if not paths:
        raise SystemExit(f"--results: got {folder} without JSON files, expected measured figures")
    figures_png = sorted(folder.glob("*.png"))
    pictures = [f"![{path.stem}]({path.name})" for path in figures_png]
    sections = [section(path.name, read(path)) for path in paths]
    on_gpus = sorted(folder.glob("gpu-*.md"))
    sections += [f"On a GPU: [{path.stem}]({path.name}) of `validate_gpu.py`." for path in on_gpus]
    (folder / "RESULTS.md").write_text("\n\n".join([HEAD.rstrip(), *pictures, *sections]) + "\n")
    print(folder / "RESULTS.md")


if __name__ == "__main__":
    main()
