"""The named ways in which a launched recipe ends other than by its own doing."""

from panda_icefall.routing import PandaError

__all__ = ["BoundReached", "NotRoutedError", "UsageError"]


class UsageError(PandaError):
    """What was typed cannot be run: an option, its value, or the named recipe file."""


class NotRoutedError(PandaError):
    """PANDA was asked for, a training batch went round, and no loss was routed."""


class BoundReached(Exception):  # noqa: N818 - the clean end of a bounded run, not an error
    """The number of batches that the user asked for has been trained.

    Raised only from places that lie outside a recipe's ``try`` around ``compute_loss``, because
    recipes answer any exception there by saving a "bad model".
    """
