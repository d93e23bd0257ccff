"""The named ways in which a launched recipe ends other than by its own doing."""

import sys
from typing import NoReturn

from panda_icefall.routing import PandaError

__all__ = ["BoundReached", "NotRoutedError", "UsageError", "exit_with"]

EXIT_NOT_ROUTED = 1
EXIT_USAGE = 2


class UsageError(PandaError):
    """What was typed cannot be run: an option, its value, or the named recipe file."""


class NotRoutedError(PandaError):
    """PANDA was asked for, a training batch went round, and no loss was routed."""


class BoundReached(Exception):  # noqa: N818 - the clean end of a bounded run, not an error
    """The number of batches that the user asked for has been trained.

    Raised only from places that lie outside a recipe's ``try`` around ``compute_loss``, because
    recipes answer any exception there by saving a "bad model".
    """


def exit_with(error: PandaError) -> NoReturn:
    """End the process with one line on stderr: status 1 where nothing was routed, else 2."""
    print(f"panda-icefall: {error}", file=sys.stderr)
    sys.exit(EXIT_NOT_ROUTED if isinstance(error, NotRoutedError) else EXIT_USAGE)
