"""The batch that a command line asks for: a corpus' sizes, random or of a training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.inputs import LossInputs
from benchmarks.options import SHAPE_OPTIONS, add_shape, shape_with
from benchmarks.shapes import CORPORA, LossShape
from benchmarks.stored_inputs import load
from benchmarks.trained import trained_inputs


def add_inputs(p: argparse.ArgumentParser) -> None:
    """--corpus, --adjoints, --checkpoint and the sizes."""
    p.add_argument("--corpus", choices=sorted(CORPORA), default="aishell", help="whose C")
    p.add_argument("--adjoints", choices=("random", "trained"), default="random")
    p.add_argument("--checkpoint", type=Path, help="epoch-N.pt in place of the stored inputs")
    add_shape(p, *SHAPE_OPTIONS)


def chosen_inputs(p: argparse.ArgumentParser, args: argparse.Namespace) -> LossInputs:
    """The batch; ends the program with a message where it cannot be had."""
    device = torch.device(args.device)
    shape = shape_with(CORPORA[args.corpus], args)
    if args.adjoints == "random":
        return LossInputs.random(shape, device)
    try:
        if args.checkpoint is None:
            inputs = load(shape.H, classes=shape.C)
            _check_sizes(args, inputs.shape)
        else:
            inputs = trained_inputs(
                args.checkpoint, shape.B, shape.T, shape.s_range, shape.shortest
            )
    except (FileNotFoundError, ValueError) as error:
        p.error(str(error))
    if shape.C != inputs.shape.C:
        p.error(
            f"--checkpoint: got one of {inputs.shape.C} classes, expected {shape.C} for "
            f"--corpus {args.corpus}; say --C {inputs.shape.C}"
        )
    return inputs.to(device)


def _check_sizes(args: argparse.Namespace, shape: LossShape) -> None:
    """Refuse sizes that the stored inputs do not have.

    Raises:
      ValueError: one was given.
    """
    for name in SHAPE_OPTIONS:
        given, stored = getattr(args, name), getattr(shape, name)
        if given is not None and given != stored:
            raise ValueError(
                f"--{name.replace('_', '-')}: got {given}, expected {stored}, as the stored "
                "inputs have; only --C, and --H and --D alike, can be chosen, or a --checkpoint"
            )


def settings_of(args: argparse.Namespace, inputs: LossInputs) -> dict[str, Any]:
    """What a result is to say about its batch."""
    return {
        "corpus": args.corpus,
        "adjoints": args.adjoints,
        "shape": vars(inputs.shape),
        "workspace_mib": args.workspace_mib,
        "device": args.device,
        "dtype": args.dtype,
    }
