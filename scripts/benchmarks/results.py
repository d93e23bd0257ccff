"""Figures on disk and on the screen: one JSON form and one table for every benchmark.

A document holds the sessions that measured one thing, each with its date, command, machine and
rows; a table prints the range over them. A ratio from one hour is not a headline.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.packages import HAS_K2, package_version
from panda_icefall.runs.atomic_file import replace_file

RESULTS = Path(__file__).resolve().parents[1] / "results"


Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
      title: its head.
      text: a cell from the rows that several sessions have for it; None prints a dash.
    """

    title: str
    text: Callable[[Sequence[Row]], str | None]


def number(
    key: str | Callable[[Row], float | None], form: str, scale: float = 1.0
) -> Callable[[Sequence[Row]], str | None]:
    """The number under ``key``, or that it makes of a row, times a scale; of several, the range."""

    def text_of(rows: Sequence[Row]) -> str | None:
        found = [key(row) if callable(key) else row.get(key) for row in rows]
        values = sorted(value * scale for value in found if value is not None)
        return None if not values else span(format(values[0], form), format(values[-1], form))

    return text_of


def mib(key: str, form: str = ".1f") -> Callable[[Sequence[Row]], str | None]:
    """Bytes under ``key`` as MiB."""
    return number(key, form, 2**-20)


def text(key: str) -> Callable[[Sequence[Row]], str | None]:
    """What stands under ``key``, all that the sessions have."""

    def text_of(rows: Sequence[Row]) -> str | None:
        found = dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None)
        return ", ".join(found) or None

    return text_of


def span(low: str, high: str) -> str:
    """A range in words."""
    return low if low == high else f"{low} to {high}"


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


def begin(benchmark: str, settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """The document that a session's rows are added to: the one in the file, or a new one.

    To be called before anything is measured.

    Args:
      settings: what was measured; the same for all sessions of a document.

    Raises:
      SystemExit: the file holds something else.
    """
    # As JSON gives it back: lists for tuples.
    settings = json.loads(json.dumps({"dtype": "fp32", **settings}))
    if not path.exists():
        return {"benchmark": benchmark, "settings": settings, "sessions": []}
    document = read(path)
    given = (benchmark, settings, _versions(machine(settings.get("device", "cpu"))))
    machine_there = document["sessions"][-1]["machine"]
    settings_there = {"dtype": "fp32", **document["settings"]}  # older ones do not say so
    there = (document["benchmark"], settings_there, _versions(machine_there))
    if given != there:
        raise SystemExit(
            f"{path}: got figures of {there}, expected those of {given} to add a session to; "
            "delete the file or give another --json"
        )
    return document


def add_session(
    document: dict[str, Any], path: Path, rows: list[Row], facts: dict[str, Any] | None = None
) -> None:
    """Append what one run measured, and write the document.

    Args:
      document: of `begin`.
      rows: flat, each with the keys of `tables.KEYS`.
      facts: further figures of this session, for the title.
    """
    session = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command(sys.argv),
        "machine": machine(document["settings"].get("device", "cpu")),
        "facts": facts or {},
        "rows": rows,
    }
    document["sessions"].append(json.loads(json.dumps(session)))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, f"{json.dumps(document, indent=1)}\n".encode())
    print(f"figures: {path}, {len(document['sessions'])} sessions")


def command(words: list[str]) -> str:
    """A command line without this machine's folders."""
    named = [Path(word).name if Path(word).is_absolute() else word for word in words[1:]]
    return shlex.join(["python", f"scripts/{Path(words[0]).stem}.py", *named])


def read(path: Path) -> dict[str, Any]:
    """One document.

    Raises:
      SystemExit: it is not one that the benchmarks wrote.
    """
    document = json.loads(path.read_text())
    if not isinstance(document, dict) or not document.get("sessions"):
        raise SystemExit(
            f"{path}: got no sessions, expected a file that a benchmark wrote; delete it and "
            "measure again"
        )
    return document


def documents(folder: Path) -> list[Path]:
    """The documents of a folder; those of other scripts, which have another form, are left out."""
    others = ("gpu-", "plan.json")  # validate_gpu.py, check_plan.py
    return [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(others)]


def default_path(*words: str, device: str, dtype: str) -> Path:
    """``results/<words>-<GPU>-<dtype>-<lane>.json``; on a CPU in float32 without the two."""
    measured_on = [device_name(device)] if device != "cpu" else []
    measured_in = [dtype] if device != "cpu" or dtype != "fp32" else []
    lane = "k2" if HAS_K2 else "modern"
    return RESULTS / ("-".join([*words, *measured_on, *measured_in, lane]) + ".json")


def device_name(device: str) -> str:
    """A device as a part of a file's name: ``nvidia-h100-80gb-hbm3``."""
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def merged(document: dict[str, Any], keys: Sequence[str]) -> list[list[Row]]:
    """The sessions' rows, those with the same values of the keys together."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for session in document["sessions"]:
        for row in session["rows"]:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def cells(
    document: dict[str, Any], columns: Sequence[Column], keys: Sequence[str]
) -> list[list[str]]:
    """The rows of a document as texts."""
    return [[column.text(rows) or "-" for column in columns] for rows in merged(document, keys)]


def print_table(
    title: str, document: dict[str, Any], columns: Sequence[Column], keys: Sequence[str]
) -> None:
    """The rows of a document on the screen."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column.title, justify="right" if i > 1 else "left")
    for row in cells(document, columns, keys):
        table.add_row(*row)
    Console(width=200).print(table)


def _versions(described: dict[str, Any]) -> dict[str, Any]:
    """What all sessions of a document have in common."""
    names = ("threads", "python", "torch", "k2", "gpu")
    return {name: described[name] for name in names if name in described}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
