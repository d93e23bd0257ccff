"""The named ways in which a launched recipe ends other than by its own doing."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from panda_icefall.routing import PandaError

__all__ = [
    "EXIT_VIOLATED",
    "BoundReached",
    "MismatchError",
    "NotRoutedError",
    "NothingTrainedError",
    "UsageError",
    "exit_status",
    "exit_with",
    "reading",
    "unread",
]

EXIT_NOT_DONE = 1
EXIT_VIOLATED = 1
EXIT_USAGE = 2


class UsageError(PandaError):
    """What was typed cannot be run: an option, its value, or the named recipe file."""


class NotRoutedError(PandaError):
    """PANDA was asked for, a batch was trained, and no loss was routed."""


class NothingTrainedError(PandaError):
    """PANDA was asked for something, and the recipe ended without a training batch it saw."""


class MismatchError(PandaError):
    """The guard found a routed loss that is not the dense one."""


class BoundReached(Exception):  # noqa: N818 - the clean end of a bounded run, not an error
    """The number of batches that the user asked for has been trained.

    Raised only from places that lie outside a recipe's ``try`` around ``compute_loss``, because
    recipes answer any exception there by saving a "bad model".
    """


@contextlib.contextmanager
def reading(name: str, path: str | Path) -> Iterator[None]:
    """What the file system refuses within, in one line, as a ``UsageError``.

    Args:
      name: Of the argument that names ``path``.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{name}: {unread(error, path)}") from error


def unread(error: OSError, path: str | Path) -> str:
    """What could not be read, and why, without the number of the error."""
    where = path if error.filename is None else error.filename
    return f"cannot read {where}: {error.strerror or error}"


def exit_with(error: PandaError) -> NoReturn:
    """End the process with one line on stderr: status 1 where nothing was done right, else 2."""
    print(f"panda-icefall: {error}", file=sys.stderr)
    is_not_done = isinstance(error, (MismatchError, NotRoutedError, NothingTrainedError))
    sys.exit(EXIT_NOT_DONE if is_not_done else EXIT_USAGE)


def exit_status(error: SystemExit) -> int:
    """The status that the interpreter makes of a ``sys.exit``: 1 where it was given words."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    return 1
