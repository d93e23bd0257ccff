"""The figure of the losses: curves over each other, their relative difference, the loss scale."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from panda_icefall.runs.records import Arm
from panda_icefall.runs.report.figures.style import (
    COLOURS,
    MUTED,
    RAISED,
    VIOLATED,
    blank,
    dress,
    step_axis,
)
from panda_icefall.runs.run_record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_loss"]

_Panel = Callable[["Axes", dict[str, Arm]], None]
_EPS_FLOAT32 = 2.0**-23
_LEAST_SPAN = 0.01  # of the loss itself: rounding must not fill the panel of the curves
_WIDTHS = {"dense": 6.0, "twin": 3.0, "routed": 1.3}  # coinciding curves stay visible as layers
_MARKERS = {"twin": 6.5, "routed": 3.8}  # the twin at the same place shows as a ring
_LABELS = {"dense": "dense", "routed": "routed", "twin": "twin (dense, start perturbed by one ulp)"}


def draw_loss(record: RunRecord) -> "Figure | None":
    """``loss.png``: loss per frame by step, the difference from dense, the loss scale if it moves.

    Returns:
      ``None`` while no arm has a step.
    """
    trained = record.trained
    arms: dict[str, Arm] = {n: trained[n] for n in ("dense", "twin", "routed") if n in trained}
    if not arms:
        return None
    bound = None if record.trajectory is None else record.trajectory.bound
    panels: list[tuple[_Panel, float]] = [(_draw_curves, 3.0)]
    if "dense" in arms and len(arms) > 1:
        panels.append((partial(_draw_differences, bound=bound), 2.2))
    if any(len(set(_scales(arm))) > 1 for arm in arms.values()):
        panels.append((_draw_scales, 1.5))
    heights = [height for _, height in panels]
    figure = blank(8.4, sum(heights) + 0.4)
    grid = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for (draw, _), axes in zip(panels, grid[:, 0]):
        dress(axes)
        draw(axes, arms)
    step_axis(grid[-1, 0], arms.values())
    drawn = [axes.get_legend_handles_labels() for axes in grid[:, 0]]
    named = {t: h for handles, texts in drawn for h, t in zip(handles, texts)}
    figure.legend(named.values(), named, loc="outside lower center", ncols=min(len(named), 4))
    return figure


def _draw_curves(axes: "Axes", arms: dict[str, Arm]) -> None:
    for name, arm in arms.items():
        steps = [s.step for s in arm.steps]
        losses = [math.nan if s.loss is None else s.loss for s in arm.steps]
        shown = [loss if math.isfinite(loss) else math.nan for loss in losses]
        axes.plot(
            steps,
            shown,
            color=COLOURS[name],
            lw=_WIDTHS[name],
            marker="o" if _is_broken(shown) else None,
            ms=_WIDTHS[name] + 2,
            zorder=RAISED[name],
            label=_LABELS[name],
            solid_capstyle="round",
        )
        broken = [step for step, loss in zip(steps, losses) if not math.isfinite(loss)]
        axes.plot(
            broken,
            [0.04] * len(broken),
            transform=axes.get_xaxis_transform(),
            ls="none",
            marker="x",
            ms=_WIDTHS[name] + 5,
            mew=1.6,
            color=COLOURS[name],
            zorder=RAISED[name],
            label=f"{name}: NaN or infinite" if broken else None,
        )
    low, high = axes.get_ylim()
    least = _LEAST_SPAN * abs(low + high) / 2
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    axes.set_title("Training loss by step")
    axes.set_ylabel("loss per frame (nats)")


def _draw_differences(axes: "Axes", arms: dict[str, Arm], bound: float | None) -> None:
    dense = {s.step: s.loss for s in arms["dense"].steps}
    curves = {n: _differences(dense, arm) for n, arm in arms.items() if n != "dense"}
    positive = [d for curve in curves.values() for d in curve.values() if d > 0]
    axes.set_title("Relative difference of the loss from the dense run")
    axes.set_ylabel("|other \N{MINUS SIGN} dense| / |dense|")
    if not any(curves.values()):
        _say(axes, "no step with finite losses in both runs")
        return
    if not positive:
        _say(axes, "identical to the last bit in every step")
        return
    lowest = min(*positive, _EPS_FLOAT32) / 10  # where differences of zero are drawn
    highest = max(*positive, _EPS_FLOAT32, bound or 0.0) * 3
    for name, curve in curves.items():
        steps, heights = list(curve), [d or lowest for d in curve.values()]
        is_zero = [d == 0 for d in curve.values()]
        style: dict[str, Any] = {"color": COLOURS[name], "zorder": RAISED[name]}
        axes.plot(steps, heights, lw=1, alpha=0.5, **style)
        for fill, kept in ((COLOURS[name], False), ("white", True)):
            points = [(x, y) for x, y, zero in zip(steps, heights, is_zero) if zero is kept]
            at, values = [x for x, _ in points], [y for _, y in points]
            axes.plot(at, values, "o", ms=_MARKERS[name], mfc=fill, **style)
    axes.axhline(_EPS_FLOAT32, color=MUTED, lw=0.9, ls=":", label="float32 eps (1.2e-07)")
    if bound is not None:
        axes.axhline(bound, color=VIOLATED, lw=1.1, ls="--", label=f"bound ({bound:.1e})")
    axes.set_yscale("log")
    axes.set_ylim(lowest / 2, highest)
    powers = range(math.ceil(math.log10(2 * lowest)), math.floor(math.log10(highest)) + 1)
    ticks = {lowest: "identical", **{10.0**power: f"$10^{{{power}}}$" for power in powers}}
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()


def _draw_scales(axes: "Axes", arms: dict[str, Arm]) -> None:
    for name, arm in arms.items():
        steps = [s.step for s in arm.steps if s.grad_scale is not None]
        width = _WIDTHS[name]
        axes.step(
            steps, _scales(arm), where="post", color=COLOURS[name], lw=width, zorder=RAISED[name]
        )
    axes.set_yscale("log", base=2)
    axes.set_title("Loss scale of fp16 training")
    axes.set_ylabel("grad scale")


def _scales(arm: Arm) -> list[float]:
    return [s.grad_scale for s in arm.steps if s.grad_scale is not None]


def _differences(dense: Mapping[int, float | None], arm: Arm) -> dict[int, float]:
    found = {}
    for step in arm.steps:
        a, b = dense.get(step.step), step.loss
        if a and b is not None and math.isfinite(a) and math.isfinite(b):
            found[step.step] = abs(b - a) / abs(a)
    return found


def _is_broken(values: list[float]) -> bool:
    """Whether some value has no finite neighbour, so that no line would show it."""
    padded = [math.nan, *values, math.nan]
    return any(
        math.isnan(before) and math.isnan(after) and not math.isnan(value)
        for before, value, after in zip(padded, values, padded[2:])
    )


def _say(axes: "Axes", text: str) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)
