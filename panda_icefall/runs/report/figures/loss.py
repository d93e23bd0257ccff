"""The figure of the losses: curves over each other, their relative difference, the loss scale."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from panda_icefall.runs.records import Arm
from panda_icefall.runs.report.figures.style import (
    MUTED,
    VIOLATED,
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

__all__ = ["draw_loss", "draw_losses"]

_Panel = Callable[["Axes", Mapping[str, Arm]], None]
_EPS_FLOAT32 = 2.0**-23
_LEAST_SPAN = 0.01  # of the loss itself: rounding must not fill the panel of the curves


def draw_loss(record: RunRecord) -> "Figure | None":
    """``loss.png``: loss per frame by step, the difference from dense, the loss scale if it moves.

    Returns:
      ``None`` while no arm has a step.
    """
    trained = record.trained
    arms: dict[str, Arm] = {n: trained[n] for n in ("dense", "twin", "routed") if n in trained}
    bound = None if record.trajectory is None else record.trajectory.bound
    return draw_losses(arms, "dense", bound)


def draw_losses(
    arms: Mapping[str, Arm], reference: str, bound: float | None = None
) -> "Figure | None":
    """The same of any runs.

    Args:
      arms: By name; each has a step.
      reference: The one that the others are compared with; it need not be there.
      bound: The largest difference that holds, if there is one.
    """
    if not arms:
        return None
    looks = looks_of(arms)
    panels: list[tuple[_Panel, float]] = [(partial(_draw_curves, looks=looks), 3.0)]
    if reference in arms and len(arms) > 1:
        panel = partial(_draw_differences, looks=looks, reference=reference, bound=bound)
        panels.append((panel, 2.2))
    if any(len(set(_scales(arm))) > 1 for arm in arms.values()):
        panels.append((partial(_draw_scales, looks=looks), 1.5))
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


def _draw_curves(axes: "Axes", arms: Mapping[str, Arm], looks: Mapping[str, Look]) -> None:
    for name, arm in arms.items():
        look = looks[name]
        steps = [s.step for s in arm.steps]
        losses = [math.nan if s.loss is None else s.loss for s in arm.steps]
        shown = [loss if math.isfinite(loss) else math.nan for loss in losses]
        axes.plot(
            steps,
            shown,
            color=look.colour,
            lw=look.width,
            marker="o" if _is_broken(shown) else None,
            ms=look.width + 2,
            zorder=look.raised,
            label=look.label,
            solid_capstyle="round",
        )
        broken = [step for step, loss in zip(steps, losses) if not math.isfinite(loss)]
        axes.plot(
            broken,
            [0.04] * len(broken),
            transform=axes.get_xaxis_transform(),
            ls="none",
            marker="x",
            ms=look.width + 5,
            mew=1.6,
            color=look.colour,
            zorder=look.raised,
            label=f"{name}: NaN or infinite" if broken else None,
        )
    low, high = axes.get_ylim()
    least = _LEAST_SPAN * abs(low + high) / 2
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    axes.set_title("Training loss by step")
    axes.set_ylabel("loss per frame (nats)")


def _draw_differences(
    axes: "Axes",
    arms: Mapping[str, Arm],
    looks: Mapping[str, Look],
    reference: str,
    bound: float | None,
) -> None:
    first = arms[reference]
    curves = {n: arm.loss_differences(first) for n, arm in arms.items() if n != reference}
    positive = [d for curve in curves.values() for d in curve.values() if d > 0]
    axes.set_title(f"Relative difference of the loss from the {reference} run")
    axes.set_ylabel("relative difference")
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
        look = looks[name]
        style: dict[str, Any] = {"color": look.colour, "zorder": look.raised}
        axes.plot(steps, heights, lw=1, alpha=0.5, **style)
        for fill, kept in ((look.colour, False), ("white", True)):
            points = [(x, y) for x, y, zero in zip(steps, heights, is_zero) if zero is kept]
            at, values = [x for x, _ in points], [y for _, y in points]
            axes.plot(at, values, "o", ms=look.marker, mfc=fill, **style)
    axes.axhline(_EPS_FLOAT32, color=MUTED, lw=0.9, ls=":", label="float32 eps (1.2e-07)")
    if bound is not None:
        axes.axhline(bound, color=VIOLATED, lw=1.1, ls="--", label=f"bound ({bound:.1e})")
    axes.set_yscale("log")
    axes.set_ylim(lowest / 2, highest)
    powers = range(math.ceil(math.log10(2 * lowest)), math.floor(math.log10(highest)) + 1)
    ticks = {lowest: "identical", **{10.0**power: f"$10^{{{power}}}$" for power in powers}}
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()


def _draw_scales(axes: "Axes", arms: Mapping[str, Arm], looks: Mapping[str, Look]) -> None:
    for name, arm in arms.items():
        steps = [s.step for s in arm.steps if s.grad_scale is not None]
        look = looks[name]
        style: dict[str, Any] = {"color": look.colour, "lw": look.width, "zorder": look.raised}
        axes.step(steps, _scales(arm), where="post", **style)
    axes.set_yscale("log", base=2)
    axes.set_title("Loss scale of fp16 training")
    axes.set_ylabel("grad scale")


def _scales(arm: Arm) -> list[float]:
    return [s.grad_scale for s in arm.steps if s.grad_scale is not None]


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
