"""The ``--use-panda`` and ``--panda-...`` options, taken out before a recipe sees its arguments."""

import argparse
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional, Union

from panda_icefall.normalizer import DEFAULT_WORKSPACE_BYTES
from panda_icefall.runs.errors import UsageError

__all__ = ["PandaOptions", "add_panda_arguments", "split_panda_arguments"]

DEFAULT_WORKSPACE_MIB = DEFAULT_WORKSPACE_BYTES / 2**20
DEFAULT_CHECK_UPDATES = 3
_PREFIXES = ("--panda", "--use-panda", "--use_panda")


@dataclass(frozen=True)
class PandaOptions:
    """What the user asked of PANDA for one run of a recipe.

    Attributes:
      use_panda: Route the pruned loss through the selected normaliser.
      workspace_mib: Scratch memory of one tile, in MiB.
      adjoint_tolerance: Share of the absolute adjoint mass that backward may leave out; ``None``
        keeps the default of :func:`panda_icefall.apply`.
      max_batches: Training batches after which the run ends cleanly; ``None`` for no bound.
      check_batches: Training batches on which the contract check runs; 0 for no check.
      memory_log: JSONL file of the memory log; ``None`` for no log.
      stop_after_check: End the run when the contract check is complete.
    """

    use_panda: bool = False
    workspace_mib: float = DEFAULT_WORKSPACE_MIB
    adjoint_tolerance: Optional[float] = None
    max_batches: Optional[int] = None
    check_batches: int = 0
    memory_log: Optional[Path] = None
    stop_after_check: bool = False

    @property
    def is_active(self) -> bool:
        """Whether anything at all has to be put around the recipe."""
        return bool(
            self.use_panda
            or self.max_batches is not None
            or self.check_batches
            or self.memory_log is not None
        )


class _RaisingParser(argparse.ArgumentParser):
    """An argument parser that reports by exception and leaves the process alone."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


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


_ARGUMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--use-panda",
        {
            "type": _str2bool,
            "default": False,
            "help": "1 to compute the pruned transducer loss through the exact selected "
            "normaliser, without the [B, T, s_range, C] logits. 0 trains as if started directly.",
        },
    ),
    (
        "--panda-workspace-mib",
        {
            "type": _number(float, "a number of MiB above 0", lambda v: math.isfinite(v) and v > 0),
            "default": DEFAULT_WORKSPACE_MIB,
            "help": "Scratch memory of one tile, in MiB. Larger tiles are faster up to a point; "
            "the loss does not depend on it.",
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
        "--panda-memory-log",
        {
            "type": _log_path,
            "default": None,
            "metavar": "FILE.jsonl",
            "help": "Write memory, time and loss counters to this file, one row per training "
            "step and phase.",
        },
    ),
)


def add_panda_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the ``PANDA`` group to ``parser``, leaving out what the parser already defines."""
    group = parser.add_argument_group("PANDA", "Taken by panda-icefall; the recipe sees none.")
    for name, settings in _ARGUMENTS:
        if name not in parser._option_string_actions:
            group.add_argument(name, **settings)


def split_panda_arguments(
    arguments: Union[list[str], tuple[str, ...]], *, is_check: bool = False
) -> tuple[PandaOptions, list[str]]:
    """Take PANDA's options out of a command line and leave every other word as it was.

    Args:
      arguments: The words after ``TRAIN_PY``.
      is_check: Whether ``panda-icefall check`` asks: the contract is then always run,
        ``--updates`` is understood as ``--panda-check-batches``, and the run ends after it.

    Returns:
      The options and the recipe's own words, in their order.

    Raises:
      UsageError: An option that looks like PANDA's but is none, or a value out of range.
    """
    parser = _RaisingParser(add_help=False, allow_abbrev=False)
    add_panda_arguments(parser)
    known = [name for name, _ in _ARGUMENTS]
    if is_check:
        parser.add_argument("--updates", dest="panda_check_batches", type=_ARGUMENTS[4][1]["type"])
        parser.set_defaults(panda_check_batches=DEFAULT_CHECK_UPDATES)
        known.append("--updates")

    ours: list[str] = []
    theirs: list[str] = []
    words = iter(arguments)
    for word in words:
        name = word.partition("=")[0]
        if name in known:
            value = [] if "=" in word else [v for v in [next(words, None)] if v is not None]
            ours += [word, *value]
        elif name.startswith(_PREFIXES):
            raise UsageError(_unknown_option(name, known))
        else:
            theirs.append(word)

    parsed = parser.parse_args(ours)
    if is_check and parsed.panda_check_batches == 0:
        raise UsageError("--updates: got 0, expected an integer of at least 1")
    bound = parsed.panda_max_batches
    if bound is not None and bound < parsed.panda_check_batches:
        raise UsageError(
            f"--panda-max-batches: got {bound}, expected at least the {parsed.panda_check_batches} "
            "batches that the contract check was asked for"
        )
    return (
        PandaOptions(
            use_panda=parsed.use_panda,
            workspace_mib=parsed.panda_workspace_mib,
            adjoint_tolerance=parsed.panda_adjoint_tolerance,
            max_batches=parsed.panda_max_batches,
            check_batches=parsed.panda_check_batches,
            memory_log=parsed.panda_memory_log,
            stop_after_check=is_check,
        ),
        theirs,
    )


def _unknown_option(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown PANDA option {name}, expected one of {', '.join(known)}{hint}"
