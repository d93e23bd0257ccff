"""The ``--use-panda`` and ``--panda-...`` options, taken out before a recipe sees its arguments."""

import argparse
import dataclasses
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional, Union

from panda_icefall.normalizer import DEFAULT_WORKSPACE_BYTES
from panda_icefall.runs.contract.tolerances import Tolerances, parse_tolerances
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
      batch_seed: Seeds the random generators before each training batch, with the recipe's count
        of batches; ``None`` leaves them alone.
      last_bit_twin: Change every parameter in its last bit before training starts.
      check_update_steps: Optimizer steps inside the contract check after which parameters are
        compared; ``None`` for one per compared batch.
      check_tolerances: ``NAME=VALUE,NAME=VALUE``: bounds of the check, fields of
        :class:`~panda_icefall.runs.contract.tolerances.Tolerances`, in place of its defaults.
    """

    use_panda: bool = False
    workspace_mib: float = DEFAULT_WORKSPACE_MIB
    adjoint_tolerance: Optional[float] = None
    max_batches: Optional[int] = None
    check_batches: int = 0
    memory_log: Optional[Path] = None
    stop_after_check: bool = False
    batch_seed: Optional[int] = None
    last_bit_twin: bool = False
    check_update_steps: Optional[int] = None
    check_tolerances: Optional[str] = None

    @property
    def batches_of_check(self) -> int:
        """Training batches that the contract check needs: to compare, or to take its steps."""
        return max(self.check_batches, self.check_update_steps or 0)

    @property
    def is_active(self) -> bool:
        """Whether anything at all has to be put around the recipe."""
        return bool(
            self.use_panda
            or self.max_batches is not None
            or self.check_batches
            or self.memory_log is not None
            or self.batch_seed is not None
            or self.last_bit_twin
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


def _tolerances(text: str) -> str:
    try:
        parse_tolerances(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


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
    missing = [(n, s) for n, s in _ARGUMENTS if n not in parser._option_string_actions]
    if not missing:  # an empty group would still print its title
        return
    group = parser.add_argument_group("PANDA", "Taken by panda-icefall; the recipe sees none.")
    for name, settings in missing:
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
        kind = dict(_ARGUMENTS)["--panda-check-batches"]["type"]
        parser.add_argument("--updates", dest="panda_check_batches", type=kind)
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
    if not parsed.panda_check_batches:
        for name in ("--panda-check-update-steps", "--panda-check-tolerances"):
            value = getattr(parsed, name[2:].replace("-", "_"))
            if value is not None:
                raise UsageError(f"{name}: got {value} without a check; give --panda-check-batches")
    bound = parsed.panda_max_batches
    needed = max(parsed.panda_check_batches, parsed.panda_check_update_steps or 0)
    if bound is not None and bound < needed:
        raise UsageError(
            f"--panda-max-batches: got {bound}, expected at least the {needed} "
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
            batch_seed=parsed.panda_batch_seed,
            last_bit_twin=parsed.panda_last_bit_twin,
            check_update_steps=parsed.panda_check_update_steps,
            check_tolerances=parsed.panda_check_tolerances,
        ),
        theirs,
    )


def _unknown_option(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown PANDA option {name}, expected one of {', '.join(known)}{hint}"
