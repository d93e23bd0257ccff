"""Numbers as the report prints them, with their units; what is not there is a dash."""

import math
from collections.abc import Callable

from panda_icefall.normalizer.workspace import MIB

__all__ = [
    "MIB",
    "NOTHING",
    "compared",
    "count",
    "distance",
    "duration",
    "loss",
    "mib",
    "ratio",
    "seconds",
]

NOTHING = "\N{EN DASH}"


def mib(size_bytes: float | None) -> str:
    """A size in MiB."""
    return NOTHING if size_bytes is None else f"{size_bytes / MIB:,.0f} MiB"


def seconds(value: float | None) -> str:
    """A short time in seconds, three digits."""
    return NOTHING if value is None else f"{value:#.3g}".rstrip(".") + " s"


def duration(value: float | None) -> str:
    """A long time, in minutes and seconds from one minute on."""
    if value is None:
        return NOTHING
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def loss(value: float | None) -> str:
    """A loss, seven digits: all that float32 has."""
    return NOTHING if value is None else f"{value:.7g}"


def distance(value: float | None) -> str:
    """A relative difference or a norm, two digits."""
    if value is None:
        return NOTHING
    return "0" if value == 0 else f"{value:.1e}"


def ratio(value: float | None, reference: float | None) -> str:
    """How many times ``reference`` the ``value`` is."""
    if value is None or not reference or not math.isfinite(value / reference):
        return NOTHING
    return f"{value / reference:.2f}\N{MULTIPLICATION SIGN}"


def compared(
    show: Callable[[float | None], str], dense: float | None, routed: float | None
) -> tuple[str, str, str]:
    """Both figures and their ratio, for three columns."""
    return show(dense), show(routed), ratio(routed, dense)


def count(value: float | None) -> str:
    """A whole number, its thousands set apart."""
    return NOTHING if value is None else f"{value:,.0f}"
