"""One look for all figures: colours, type, and the way from a figure to PNG bytes."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from panda_icefall.runs.records import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "INK",
    "MUTED",
    "VIOLATED",
    "Look",
    "as_png",
    "blank",
    "dress",
    "looks_of",
    "step_axis",
    "styled",
]


@dataclass(frozen=True)
class Look:
    """How one run is drawn.

    Attributes:
      label: Its name in legends.
      colour: Of lines and bars.
      width: Of its loss curve: coinciding curves stay visible as layers.
      marker: Size of its points.
      raised: Drawing order.
    """

    label: str
    colour: str
    width: float
    marker: float
    raised: int


# Told apart by colour-blind readers too, and in grey print by their lightness and line width. The
# twin at the same place shows as a ring.
_LOOKS = {
    "dense": Look("dense", "#8a8f98", 6.0, 6.5, 1),
    "twin": Look("twin (dense, start perturbed by one ulp)", "#1d6fa5", 3.0, 6.5, 2),
    "routed": Look("routed", "#c2410c", 1.3, 3.8, 3),
}
COLOURS = {name: look.colour for name, look in _LOOKS.items()}
_OTHERS = ("#c2410c", "#1d6fa5", "#4d7c3a", "#6b4fa0", "#a3195b", "#8a5a00", "#0f766e", "#8a8f98")
VIOLATED = "#a3195b"
INK, MUTED = "#1f2328", "#59636e"
_DPI = 150
_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so it is there everywhere
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9aa1a9",
    "axes.formatter.useoffset": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
}


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """How runs are drawn beside each other: the arms of a bounded run as ever, others in turn."""
    listed = list(names)
    if set(listed) <= _LOOKS.keys():
        return {name: _LOOKS[name] for name in listed}
    widths = [max(1.3, 4.5 - index) for index in range(len(listed))]
    return {
        name: Look(name, _OTHERS[index % len(_OTHERS)], widths[index], 3.8, index + 1)
        for index, name in enumerate(listed)
    }


@contextmanager
def styled() -> Iterator[None]:
    """Draw within this; the caller's own matplotlib settings are left as they were."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def blank(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that makes room for labels and legends by itself."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def dress(axes: "Axes", grid: str = "both") -> None:
    """Leave two spines and a faint grid along the given axis (``x``, ``y`` or ``both``)."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.22, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def step_axis(axes: "Axes", arms: Iterable[Arm]) -> None:
    """Label the step axis, tick it at whole numbers, and reach from the first step to the last."""
    from matplotlib.ticker import MaxNLocator

    steps = [s.step for arm in arms for s in arm.steps]
    margin = max(0.02 * (max(steps) - min(steps)), 0.4)
    axes.set_xlim(min(steps) - margin, max(steps) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlabel("training step")


def as_png(figure: "Figure") -> bytes:
    """The figure rendered, without the time of day in it: equal content gives equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
