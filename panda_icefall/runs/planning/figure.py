"""A plan as a figure: memory by component, and how long a batch may be against the classes."""

from pathlib import Path

from panda_icefall.normalizer.workspace import MIB
from panda_icefall.runs.atomic_file import replace_file
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.planning.plan import ARMS, LONGEST, Plan, capacity_against_classes
from panda_icefall.runs.report.figures.style import COLOURS, MUTED, as_png, blank, dress, styled

__all__ = ["write_figure"]

_CLASSES = (500, 1000, 2000, 4000, 8000, 16000, 32000, 64000)
_SHADES = (
    "#c2410c", "#1d6fa5", "#8a8f98", "#a3195b", "#5b8c5a", "#b59f3b", "#6b5ca5", "#3f4c5a",
    "#e08a5f", "#7fb2d6", "#c9a0b8", "#9cc29b",
)  # fmt: skip


def write_figure(plan: Plan, path: Path) -> None:
    """Draw the plan into a PNG file.

    Raises:
      UsageError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--figure: matplotlib cannot be loaded ({error}); pip install 'panda-icefall[plots]'"
        ) from error
    with styled():
        drawing = blank(10.5, 4.2)
        bars, capacity = drawing.subplots(1, 2, width_ratios=(1.0, 1.2))
        dress(bars, grid="y")
        names = dict.fromkeys(name for arm in ARMS for name in plan.components[arm])
        floor = dict.fromkeys(ARMS, 0.0)
        for name, colour in zip(names, _SHADES):
            heights = [plan.components[arm].get(name, 0) / MIB for arm in ARMS]
            bars.bar(ARMS, heights, bottom=[floor[a] for a in ARMS], color=colour, label=name)
            floor = {arm: floor[arm] + height for arm, height in zip(ARMS, heights)}
        for index, arm in enumerate(ARMS):
            total = f"{floor[arm]:,.0f}"
            bars.annotate(total, (index, floor[arm]), ha="center", va="bottom")
        bars.set_ylim(0, 1.1 * max(floor.values()))
        what = "the losses" if plan.inputs.calibration is None else "a step"
        bars.set_title(f"Peak of {what} at --max-duration {plan.inputs.max_duration:g}")
        bars.set_ylabel("MiB")
        dress(capacity)
        for arm, longest in capacity_against_classes(plan.inputs, _CLASSES).items():
            capacity.plot(_CLASSES, longest, "o-", color=COLOURS[arm], label=arm)
        capacity.axvline(plan.inputs.sizes.C, color=MUTED, lw=1, ls=":")
        capacity.axhline(LONGEST, color=MUTED, lw=1, ls=":", label="none longer was tried")
        capacity.set_xscale("log", base=2)
        capacity.set_xticks(_CLASSES, [f"{classes:,}" for classes in _CLASSES])
        capacity.set_yscale("log")
        capacity.set_xlabel("classes C; dotted: this plan's")
        capacity.set_ylabel("seconds of audio")
        usable = f"{plan.inputs.usable_bytes / 2**30:.1f} GiB"
        capacity.set_title(f"Largest --max-duration of {what} in {usable}")
        capacity.legend()
        handles, labels = bars.get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
        png = as_png(drawing)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, png)
    except OSError as error:
        raise UsageError(f"--figure: cannot write {path}: {error.strerror}") from error
