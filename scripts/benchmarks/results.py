"""Figures on disk and on the screen: one JSON form and one table for every benchmark."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.arms import HAS_K2
from benchmarks.full_lattice import package_version

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
      title: its head.
      text: a row's cell; None prints a dash.
    """

    title: str
    text: Callable[[dict[str, Any]], str | None]


def mib(key: str) -> Callable[[dict[str, Any]], str | None]:
    """Bytes under ``key`` as MiB."""
    return lambda row: None if row.get(key) is None else f"{row[key] / 2**20:.1f}"


def number(key: str, form: str) -> Callable[[dict[str, Any]], str | None]:
    """The number under ``key`` in a format."""
    return lambda row: None if row.get(key) is None else format(row[key], form)


def text(key: str) -> Callable[[dict[str, Any]], str | None]:
    """What stands under ``key``."""
    return lambda row: None if row.get(key) is None else str(row[key])


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on beside the code."""
    described: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "k2": package_version("k2"),
        "lane": "k2" if HAS_K2 else "modern",
    }
    if device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
    return described


def document(
    benchmark: str, settings: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """The JSON form: what was run, where, and a list of flat rows."""
    return {
        "benchmark": benchmark,
        "command": shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(settings.get("device", "cpu")),
        "settings": settings,
        "rows": rows,
    }


def default_path(*words: str) -> Path:
    """``results/<words>-<lane>.json``."""
    return RESULTS / ("-".join([*words, "k2" if HAS_K2 else "modern"]) + ".json")


def write(figures: dict[str, Any], path: Path) -> None:
    """Write a document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"figures: {path}")


def cells(figures: dict[str, Any], columns: list[Column]) -> list[list[str]]:
    """The rows of a document as texts."""
    return [[column.text(row) or "-" for column in columns] for row in figures["rows"]]


def print_table(title: str, figures: dict[str, Any], columns: list[Column]) -> None:
    """The rows of a document on the screen."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column.title, justify="right" if i > 1 else "left")
    for row in cells(figures, columns):
        table.add_row(*row)
    Console(width=170).print(table)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
