"""RESULTS.md from the figures of the benchmarks: the exact command and the table of each.

python scripts/results_tables.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import results, tables

HEAD = """# Results of the benchmarks

Written by `scripts/results_tables.py` from the JSON files in this folder; each begins with the
command that made it. Peaks are above inputs and parameters, all gradients included.

Frames with another band: each method prunes by its own simple loss's occupations. Where two
windows of states tie but for rounding, as on random inputs, its pruned loss is one over other sites
there, and the distance of the whole loss and its gradients is that of another band, not of
rounding; the halves are compared on the same band.
"""


def section(name: str, figures: dict[str, Any]) -> str:
    """Title, figures, command, machine and table of one document."""
    columns = tables.COLUMNS[figures["benchmark"]]
    rows = [
        [column.title for column in columns],
        ["---"] * len(columns),
        *results.cells(figures, columns),
    ]
    machine = ", ".join(f"{key} {value}" for key, value in figures["machine"].items())
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    title = f"## {tables.title(figures)} ({figures['machine']['lane']} lane)"
    return "\n".join(
        [title, "", f"```\n{figures['command']}\n```", "", f"`{name}`: {machine}.", "", *lines]
    )


def read(path: Path) -> dict[str, Any]:
    """One document.

    Raises:
      SystemExit: it is not one that the benchmarks wrote.
    """
    figures = json.loads(path.read_text())
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
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise SystemExit(f"--results: got {folder} without JSON files, expected measured figures")
    figures_png = sorted(folder.glob("*.png"))
    pictures = [f"![{path.stem}]({path.name})" for path in figures_png]
    sections = [section(path.name, read(path)) for path in paths]
    (folder / "RESULTS.md").write_text("\n\n".join([HEAD.rstrip(), *pictures, *sections]) + "\n")
    print(folder / "RESULTS.md")


if __name__ == "__main__":
    main()
