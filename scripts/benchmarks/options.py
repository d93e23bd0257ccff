"""Command-line options that several benchmarks have, under one name and with one meaning."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.precision import PRECISIONS, is_supported
from benchmarks.shapes import LossShape

SHAPE_OPTIONS = ("B", "T", "S", "s_range", "C", "H", "D")
# Kernels are compiled and chosen in them; where they exist, the round that compares is enough.
WARM_UPS = {"cpu": 0, "cuda": 3}


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that takes so many or more.

    Raises:
      argparse.ArgumentTypeError: From the type, where the word is no such number.
    """

    def count(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"got {word}, expected at least {least}")
        return number

    return count


class BenchParser(argparse.ArgumentParser):
    """Refuses a device or a precision that is not there before anything is measured."""

    def parse_args(self, *given: Any) -> Any:
        args = super().parse_args(*given)
        if args.device == "cuda" and not torch.cuda.is_available():
            self.error("--device: got cuda, expected cpu: torch finds no GPU here")
        if not is_supported(args.dtype, torch.device(args.device)):
            self.error(
                f"--dtype: got {args.dtype}, expected one that autocast of torch "
                f"{torch.__version__} knows on {args.device}"
            )
        if args.warm_ups is None:
            args.warm_ups = WARM_UPS[args.device]
        elif args.warm_ups < 0:
            self.error(f"--warm-ups: got {args.warm_ups}, expected at least 0")
        return args


def make_parser(doc: str, devices: Sequence[str] = ("cpu", "cuda")) -> argparse.ArgumentParser:
    """A parser with --device, --dtype, --repeats, --warm-ups, --workspace-mib and --json."""
    p = BenchParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--device", choices=devices, default="cpu", help="where the losses are computed")
    p.add_argument(
        "--dtype",
        choices=PRECISIONS,
        default="fp32",
        help="tf32: float32 with TF32 products; bf16, fp16: forward under autocast",
    )
    p.add_argument("--repeats", type=at_least(1), default=3, help="timed runs of each method")
    p.add_argument(
        "--warm-ups",
        type=int,
        help=f"runs before the timed ones; {WARM_UPS['cuda']} on CUDA, where kernels are compiled",
    )
    p.add_argument("--workspace-mib", type=float, help="of PANDA's tiles; its default if not given")
    p.add_argument("--json", type=Path, help="write the figures here, not to scripts/results/")
    return p


def add_shape(p: argparse.ArgumentParser, *names: str) -> None:
    """Options that replace sizes of a named shape."""
    for name in names:
        least = 2 if name == "C" else 1  # a blank and a symbol
        p.add_argument(
            f"--{name.replace('_', '-')}", type=at_least(least), help="replaces that of the shape"
        )


def shape_with(shape: LossShape, args: argparse.Namespace) -> LossShape:
    """A shape with the sizes that were given on the command line."""
    given: dict[str, Any] = {
        name: getattr(args, name) for name in SHAPE_OPTIONS if getattr(args, name, None) is not None
    }
    return LossShape(**{**vars(shape), **given})
