"""PANDA's options on a command line: taken out of it before a recipe sees it, shown in its help."""

import argparse
import difflib
from typing import NoReturn

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.options import PandaOptions, spelt

__all__ = ["add_panda_arguments", "split_panda_arguments"]

DEFAULT_CHECK_UPDATES = 3
_PREFIXES = ("--panda", "--use-panda", "--use_panda")
_CHECK_BATCHES = "--panda-check-batches"


def add_panda_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the ``PANDA`` group to ``parser``, leaving out what the parser already defines."""
    flags = PandaOptions.flags()
    missing = [flag for flag in flags if flag not in parser._option_string_actions]
    if not missing:  # an empty group would still print its title
        return
    group = parser.add_argument_group(
        "PANDA", "Options of panda-icefall, which the recipe does not see."
    )
    for flag in missing:
        option = flags[flag]
        group.add_argument(
            flag,
            type=option.metadata["parse"],
            default=option.default,
            help=option.metadata["help"],
            metavar=option.metadata["metavar"],
        )


class _RaisingParser(argparse.ArgumentParser):
    """An argument parser that reports by exception and leaves the process alone."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def split_panda_arguments(
    arguments: list[str] | tuple[str, ...], *, is_check: bool = False
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
    flags = PandaOptions.flags()
    known = list(flags)
    if is_check:
        parse = flags[_CHECK_BATCHES].metadata["parse"]
        parser.add_argument("--updates", dest=_dest(_CHECK_BATCHES), type=parse)
        parser.set_defaults(**{_dest(_CHECK_BATCHES): DEFAULT_CHECK_UPDATES})
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
    values = {option.name: getattr(parsed, _dest(flag)) for flag, option in flags.items()}
    options = PandaOptions(**values, stop_after_check=is_check)
    _check_together(options)
    return options, theirs


def _dest(flag: str) -> str:
    return flag[2:].replace("-", "_")


def _check_together(options: PandaOptions) -> None:
    """Refuse values that are good alone, but not with each other."""
    if options.stop_after_check and options.check_batches == 0:
        raise UsageError("--updates: got 0, expected an integer of at least 1")
    if not options.check_batches:
        for flag, value in options.given("check").items():
            raise UsageError(f"{flag}: got {spelt(value)} without a check; give {_CHECK_BATCHES}")
    if options.projections is not None and "ctc" in options.projections and not options.ctc:
        given = spelt(options.projections)
        raise UsageError(f"--panda-projections: got {given} without a CTC loss; give --panda-ctc 1")
    if options.verify_every is not None and not options.use_panda:
        raise UsageError(
            f"--panda-verify-every: got {options.verify_every} without PANDA; give --use-panda 1"
        )
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
