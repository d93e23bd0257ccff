"""The ``--use-panda`` and ``--panda-...`` arguments: names, types, defaults and help."""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any, Callable

from panda_icefall.engine_choice import ENGINES, MissingEngineError, check_engine
from panda_icefall.routing.finding_projections import check_projection_names
from panda_icefall.runs.contract.tolerances import Tolerances, parse_tolerances

__all__ = ["PANDA_ARGUMENTS", "add_panda_arguments"]


def _str2bool(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("1", "true", "t", "yes", "y"):
        return True
    if lowered in ("0", "false", "f", "no", "n"):
        return False
    raise argparse.ArgumentTypeError(f"got {text!r}, expected 0 or 1")


def _number(
    kind: Callable[[str], Any], expected: str, is_valid: Callable[[Any], bool]
) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_valid(value):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return parse


def _log_path(text: str) -> Path:
    path = Path(text)
    if not text or path.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected the path of a file to write")
    return path.absolute()


def _tolerances(text: str) -> str:
    try:
        parse_tolerances(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _engine(text: str) -> str:
    try:
        check_engine(text)
    except (ValueError, MissingEngineError) as error:
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None
    return text


def _projections(text: str) -> dict[str, str]:
    parts = [part.strip().partition("=") for part in text.split(",")]
    names = {kind.strip(): name.strip() for kind, _, name in parts}
    try:
        if len(names) < len(parts):
            raise ValueError("one kind twice")
        check_projection_names(names)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected am=NAME,lm=NAME or one of the two, as the model calls them"
        ) from None
    return names


PANDA_ARGUMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--use-panda",
        {
            "type": _str2bool,
            "default": False,
            "help": "1 to compute the pruned transducer loss through the exact selected "
            "normaliser, without the [B, T, s_range, C] logits, and the simple loss without am and "
            "lm of C classes. 0 trains as if started directly.",
        },
    ),
    (
        "--panda-workspace-mib",
        {
            "type": _number(float, "a number of MiB above 0", lambda v: math.isfinite(v) and v > 0),
            "default": None,
            "help": "Upper bound of a tile's scratch memory, in MiB; the default is chosen from "
            "the device's caches and free memory. The loss does not depend on it.",
        },
    ),
    (
        "--panda-adjoint-tolerance",
        {
            "type": _number(float, "a number in [0, 1)", lambda v: 0.0 <= v < 1.0),
            "default": None,
            "help": "Share of the absolute adjoint mass that backward may leave out. 0 leaves "
            "nothing out; the default stays below fp32 rounding.",
        },
    ),
    (
        "--panda-engine",
        {
            "type": _engine,
            "default": "auto",
            "metavar": "{" + ",".join(ENGINES) + "}",
            "help": "Kernels of the pruned loss; auto: Triton's on CUDA where it is installed.",
        },
    ),
    (
        "--panda-projections",
        {
            "type": _projections,
            "default": None,
            "metavar": "am=NAME,lm=NAME",
            "help": "Names of the model's projections to classes that the simple loss reads, where "
            "they are not called simple_am_proj and simple_lm_proj: the last part of a module's "
            "name, or more of it.",
        },
    ),
    (
        "--panda-max-batches",
        {
            "type": _number(int, "an integer of at least 1", lambda v: v >= 1),
            "default": None,
            "help": "End the run cleanly, with a checkpoint and a summary, after this many "
            "training batches.",
        },
    ),
    (
        "--panda-check-batches",
        {
            "type": _number(int, "an integer of at least 0", lambda v: v >= 0),
            "default": 0,
            "help": "Compare dense and routed training on copies of the model over this many "
            "first batches: losses, gradients and updated parameters. Training itself is not "
            "changed by it.",
        },
    ),
    (
        "--panda-check-update-steps",
        {
            "type": _number(int, "an integer of at least 1", lambda v: v >= 1),
            "default": None,
            "help": "Optimizer steps inside the contract check after which the updated parameters "
            "are compared, if not one per compared batch. Further batches are only trained on.",
        },
    ),
    (
        "--panda-check-tolerances",
        {
            "type": _tolerances,
            "default": None,
            "metavar": "NAME=VALUE,NAME=VALUE",
            "help": "Bounds of the contract check in place of its defaults: "
            f"{', '.join(field.name for field in dataclasses.fields(Tolerances))}.",
        },
    ),
    (
        "--panda-memory-log",
        {
            "type": _log_path,
            "default": None,
            "metavar": "FILE.jsonl",
            "help": "Write memory, time and loss counters to this file, one row per training "
            "step and phase.",
        },
    ),
    (
        "--panda-batch-seed",
        {
            "type": _number(int, "an integer of at least 0", lambda v: v >= 0),
            "default": None,
            "help": "Seed the random generators before each training batch from this number and "
            "the recipe's count of batches, so that a run resumed within an epoch draws what the "
            "uninterrupted one drew.",
        },
    ),
    (
        "--panda-last-bit-twin",
        {
            "type": _str2bool,
            "default": False,
            "help": "1 to change every parameter in its last bit before training starts: what such "
            "a run ends with shows what rounding alone does to the recipe.",
        },
    ),
)


def add_panda_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the ``PANDA`` group to ``parser``, leaving out what the parser already defines."""
    missing = [(n, s) for n, s in PANDA_ARGUMENTS if n not in parser._option_string_actions]
    if not missing:  # an empty group would still print its title
        return
    group = parser.add_argument_group("PANDA", "Taken by panda-icefall; the recipe sees none.")
    for name, settings in missing:
        group.add_argument(name, **settings)
