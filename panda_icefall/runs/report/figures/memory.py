"""The figure of the peak memory of every training step."""

from panda_icefall.runs.report.figures.style import (
    COLOURS,
    MUTED,
    RAISED,
    as_png,
    dress,
    step_axis,
    styled,
)
from panda_icefall.runs.run_record import RunRecord

__all__ = ["draw_memory"]

_MIB = 2**20


def draw_memory(record: RunRecord) -> bytes | None:
    """``memory.png``: peak of each step, dense and routed, in MiB from zero.

    Returns:
      ``None`` while neither arm has a measured step.
    """
    trained = {n: arm for n, arm in record.trained.items() if arm.peak_bytes is not None}
    arms = {name: trained[name] for name in ("dense", "routed") if name in trained}
    if not arms:
        return None
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        axes = figure.subplots()
        dress(axes)
        for name, arm in arms.items():
            measured = [s for s in arm.steps if s.peak_bytes is not None]
            axes.plot(
                [s.step for s in measured],
                [(s.peak_bytes or 0) / _MIB for s in measured],
                color=COLOURS[name],
                lw=2.2,
                marker="o",
                ms=3.5,
                zorder=RAISED[name],
                label=f"{name}, at most {(arm.peak_bytes or 0) / _MIB:,.0f} MiB",
            )
        bases = {n: arm.base_bytes for n, arm in arms.items() if arm.base_bytes is not None}
        if bases:
            base = min(bases.values()) / _MIB
            axes.axhline(base, color=MUTED, lw=1, ls=":", label=f"before step 1, {base:,.0f} MiB")
        kind = next(iter(arms.values())).memory_kind
        axes.set_title(f"Peak memory of each training step ({kind})")
        axes.set_ylabel("MiB")
        axes.set_ylim(bottom=0)
        step_axis(axes, arms.values())
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return as_png(figure)
