"""The figure of memory and time by phase of a training step."""

import math
from typing import TYPE_CHECKING, Callable

from panda_icefall.runs.records import Arm, phases_of
from panda_icefall.runs.report.figures.style import COLOURS, INK, as_png, dress, styled
from panda_icefall.runs.run_record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_phases"]

_MIB = 2**20
_BAR = 0.38
_Figure = Callable[[Arm, str], float | None]


def draw_phases(record: RunRecord) -> bytes | None:
    """``phases.png``: medians of peak memory and of seconds by phase, dense and routed.

    Returns:
      ``None`` while no phase was measured in either arm.
    """
    arms = record.comparable
    phases = phases_of(arms.values())
    if not phases:
        return None
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(8.4, 0.9 + 0.56 * len(phases)), layout="constrained")
        peaks, times = figure.subplots(1, 2, sharey=True)
        kind = next(iter(arms.values())).memory_kind
        _draw_bars(peaks, arms, phases, lambda arm, p: _in_mib(arm.phase_peak_bytes(p)))
        _draw_bars(times, arms, phases, lambda arm, p: arm.phase_seconds(p))
        peaks.set_title("Peak memory by phase")
        peaks.set_xlabel(f"MiB ({kind}), median over steps")
        times.set_title("Time by phase")
        times.set_xlabel("seconds, median over steps")
        peaks.set_yticks(range(len(phases)), [phase.replace("_", " ") for phase in phases])
        peaks.invert_yaxis()
        handles, labels = peaks.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
        return as_png(figure)


def _draw_bars(axes: "Axes", arms: dict[str, Arm], phases: list[str], value_of: _Figure) -> None:
    dress(axes, grid="x")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    largest = max((value_of(arm, p) or 0.0 for arm in arms.values() for p in phases), default=0.0)
    # Three digits of the longest bar, and as many decimals on the others: lengths to compare.
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 0
    for index, (name, arm) in enumerate(arms.items()):
        offset = (index - (len(arms) - 1) / 2) * _BAR
        values = [value_of(arm, phase) for phase in phases]
        bars = axes.barh(
            [row + offset for row in range(len(phases))],
            [value or 0.0 for value in values],
            height=_BAR * 0.92,
            color=COLOURS[name],
            label=name,
        )
        texts = ["not measured" if value is None else f"{value:,.{decimals}f}" for value in values]
        axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.margins(x=0.16)
    axes.set_xlim(left=0)


def _in_mib(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else size_bytes / _MIB
