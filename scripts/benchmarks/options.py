"""Command-line options that several benchmarks have, under one name and with one meaning."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.shapes import LossShape

SHAPE_OPTIONS = ("B", "T", "S", "s_range", "C", "H", "D")


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with --device, --repeats, --workspace-mib and --json."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--repeats", type=int, default=3, help="timed runs of each method")
    p.add_argument("--workspace-mib", type=float, help="of PANDA's tiles; its default if not given")
    p.add_argument("--json", type=Path, help="write the figures here, not to scripts/results/")
    return p


def add_shape(p: argparse.ArgumentParser, *names: str) -> None:
    """Options that replace sizes of a named shape."""
    for name in names:
        p.add_argument(f"--{name.replace('_', '-')}", type=int, help="replaces that of the shape")


def shape_with(shape: LossShape, args: argparse.Namespace) -> LossShape:
    """A shape with the sizes that were given on the command line."""
    given: dict[str, Any] = {
        name: getattr(args, name) for name in SHAPE_OPTIONS if getattr(args, name, None) is not None
    }
    return LossShape(**{**vars(shape), **given})


def check_counts(parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str) -> None:
    """Refuse options below 1."""
    for name in names:
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option}: got {getattr(args, name)}, expected at least 1")
