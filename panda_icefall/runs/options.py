"""What the user asked of PANDA, taken out of a command line before a recipe sees it."""

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Optional, Union

import panda_icefall
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.panda_arguments import (
    PANDA_ARGUMENTS,
    add_panda_arguments,
)

__all__ = ["PandaOptions", "split_panda_arguments"]

DEFAULT_CHECK_UPDATES = 3
CHECKPOINT_KEY = "panda"
_PREFIXES = ("--panda", "--use-panda", "--use_panda")


@dataclass(frozen=True)
class PandaOptions:
    """What the user asked of PANDA for one run of a recipe.

    Attributes:
      use_panda: Route the pruned loss through the selected normaliser.
      workspace_mib: Upper bound of a tile's scratch memory, in MiB; ``None``: by the device.
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
      engine: Kernels of the pruned loss: ``torch``, ``triton`` or ``auto``.
      projections: What the simple loss's projections are called, by "am" and "lm"; ``None``: as in
        icefall.
    """

    use_panda: bool = False
    workspace_mib: Optional[float] = None
    adjoint_tolerance: Optional[float] = None
    max_batches: Optional[int] = None
    check_batches: int = 0
    memory_log: Optional[Path] = None
    stop_after_check: bool = False
    batch_seed: Optional[int] = None
    last_bit_twin: bool = False
    check_update_steps: Optional[int] = None
    check_tolerances: Optional[str] = None
    engine: str = "auto"
    projections: Optional[Mapping[str, str]] = None

    @property
    def in_words(self) -> str:
        """The options that are not at their defaults, as they are typed; without the log's path."""
        words = []
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if isinstance(value, Mapping):
                value = ",".join(f"{kind}={name}" for kind, name in value.items())
            name = f"--{'' if option.name == 'use_panda' else 'panda-'}{option.name}"
            if value != option.default and option.name not in ("stop_after_check", "memory_log"):
                words.append(f"{name.replace('_', '-')} {int(value) if value is True else value}")
        return " ".join(words)

    @property
    def announcement(self) -> str:
        """One line for a log: which version, with which options, and whether PANDA is off."""
        off = "" if self.use_panda else "; PANDA is OFF, the recipe trains dense"
        return f"panda-icefall {panda_icefall.__version__}: {self.in_words}{off}"

    def note_in(self, params: Any) -> None:
        """Leave word in a recipe's ``params``, which its checkpoints keep, where PANDA is on.

        It is text beside the recipe's own parameters: icefall loads such a checkpoint, and trains
        on from it, without PANDA.
        """
        if self.use_panda and isinstance(params, MutableMapping):
            params[CHECKPOINT_KEY] = self.announcement

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
    known = [name for name, _ in PANDA_ARGUMENTS]
    if is_check:
        kind = dict(PANDA_ARGUMENTS)["--panda-check-batches"]["type"]
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
    options = PandaOptions(
        use_panda=parsed.use_panda,
        workspace_mib=parsed.panda_workspace_mib,
        adjoint_tolerance=parsed.panda_adjoint_tolerance,
        engine=parsed.panda_engine,
        projections=parsed.panda_projections,
        max_batches=parsed.panda_max_batches,
        check_batches=parsed.panda_check_batches,
        memory_log=parsed.panda_memory_log,
        stop_after_check=is_check,
        batch_seed=parsed.panda_batch_seed,
        last_bit_twin=parsed.panda_last_bit_twin,
        check_update_steps=parsed.panda_check_update_steps,
        check_tolerances=parsed.panda_check_tolerances,
    )
    _check_together(options)
    return options, theirs


def _check_together(options: PandaOptions) -> None:
    """Refuse values that are good alone, but not with each other."""
    if options.stop_after_check and options.check_batches == 0:
        raise UsageError("--updates: got 0, expected an integer of at least 1")
    of_check = {
        "--panda-check-update-steps": options.check_update_steps,
        "--panda-check-tolerances": options.check_tolerances,
    }
    for name, value in of_check.items():
        if value is not None and not options.check_batches:
            raise UsageError(f"{name}: got {value} without a check; give --panda-check-batches")
    bound, needed = options.max_batches, options.batches_of_check
    if bound is not None and bound < needed:
        raise UsageError(
            f"--panda-max-batches: got {bound}, expected at least the {needed} "
            "batches that the contract check was asked for"
        )


def _unknown_option(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown PANDA option {name}, expected one of {', '.join(known)}{hint}"
