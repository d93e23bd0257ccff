"""The figures of memory: the peak of every training step, and memory and time by its phases."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from panda_icefall.runs.records import Arm, phases_of
from panda_icefall.runs.report import units
from panda_icefall.runs.report.figures.style import (
    INK,
    MUTED,
    Look,
    blank,
    dress,
    looks_of,
    step_axis,
)
from panda_icefall.runs.run_record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_memory", "draw_peaks", "draw_phase_bars", "draw_phases"]

_BARS = 0.76  # of the height of a row, all runs together


def draw_memory(record: RunRecord) -> "Figure | None":
    """``memory.png``: peak of each step, dense and routed, in MiB from zero.

    Returns:
      ``None`` while neither arm has a measured step.
    """
    trained = {n: arm for n, arm in record.trained.items() if arm.peak_bytes is not None}
    return draw_peaks({name: trained[name] for name in ("dense", "routed") if name in trained})


def draw_peaks(arms: Mapping[str, Arm]) -> "Figure | None":
    """The same of any runs, each with a measured step."""
    if not arms:
        return None
    figure = blank(8.4, 3.4)
    axes = figure.subplots()
    dress(axes)
    looks = looks_of(arms)
    for name, arm in arms.items():
        measured = [s for s in arm.steps if s.peak_bytes is not None]
        axes.plot(
            [s.step for s in measured],
            [(s.peak_bytes or 0) / units.MIB for s in measured],
            color=looks[name].colour,
            lw=2.2,
            marker="o",
            ms=3.5,
            zorder=looks[name].raised,
            label=f"{name}, at most {(arm.peak_bytes or 0) / units.MIB:,.0f} MiB",
        )
    bases = {n: arm.base_bytes for n, arm in arms.items() if arm.base_bytes is not None}
    if bases:
        base = min(bases.values()) / units.MIB
        axes.axhline(base, color=MUTED, lw=1, ls=":", label=f"before step 1, {base:,.0f} MiB")
    kind = next(iter(arms.values())).memory_kind
    axes.set_title(f"Peak memory of each training step ({kind})")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    step_axis(axes, arms.values())
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_phases(record: RunRecord) -> "Figure | None":
    """``phases.png``: medians of peak memory and of seconds by phase, dense and routed.

    Returns:
      ``None`` while no phase was measured in either arm.
    """
    return draw_phase_bars(record.comparable)


def draw_phase_bars(arms: Mapping[str, Arm]) -> "Figure | None":
    """The same of any runs."""
    phases = phases_of(arms.values())
    if not phases:
        return None
    figure = blank(8.4, 0.9 + (0.1 + 0.23 * max(2, len(arms))) * len(phases))
    peaks, times = figure.subplots(1, 2, sharey=True)
    kind = next(iter(arms.values())).memory_kind
    _draw_bars(peaks, arms, phases, Arm.phase_peak_bytes, units.MIB)
    _draw_bars(times, arms, phases, Arm.phase_seconds)
    peaks.set_title("Peak memory by phase")
    peaks.set_xlabel(f"MiB ({kind}), median over steps")
    times.set_title("Time by phase")
    times.set_xlabel("seconds, median over steps")
    peaks.set_yticks(range(len(phases)), [phase.replace("_", " ") for phase in phases])
    peaks.invert_yaxis()
    handles, labels = peaks.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=min(4, max(2, len(arms))))
    return figure


def _draw_bars(
    axes: "Axes",
    arms: Mapping[str, Arm],
    phases: list[str],
    figure_of: Callable[[Arm, str], float | None],
    unit: int = 1,
) -> None:
    dress(axes, grid="x")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    measured = {name: [figure_of(arm, phase) for phase in phases] for name, arm in arms.items()}
    longest = max((v or 0.0 for values in measured.values() for v in values), default=0.0) / unit
    # Three digits of the longest bar, and as many decimals on the others: lengths to compare.
    decimals = max(0, 2 - math.floor(math.log10(longest))) if longest > 0 else 0
    looks: dict[str, Look] = looks_of(arms)
    height = _BARS / max(2, len(arms))
    for index, (name, values) in enumerate(measured.items()):
        offset = (index - (len(arms) - 1) / 2) * height
        bars = axes.barh(
            [row + offset for row in range(len(phases))],
            [(value or 0.0) / unit for value in values],
            height=height * 0.92,
            color=looks[name].colour,
            label=name,
        )
        texts = ["not measured" if v is None else f"{v / unit:,.{decimals}f}" for v in values]
        axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.margins(x=0.16)
    axes.set_xlim(left=0)
