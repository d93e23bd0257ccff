"""Draw panda_icefall/how-it-works.png: what exists at one time, dense and with PANDA.

.venvs/modern/bin/python scripts/plot_how_it_works.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

OUT = Path(__file__).resolve().parents[1] / "panda_icefall" / "how-it-works.png"
KEPT, PASSING, LARGE = "#dbe7f3", "#fbe7b8", "#f3c6bf"


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, fill: str) -> None:
    """A tensor: its lower left corner, size and name."""
    axes.add_patch(plt.Rectangle((x, y), width, height, facecolor=fill, edgecolor="#444444"))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """What makes one tensor of another."""
    style = {"arrowstyle": "-|>", "color": "#444444", "shrinkA": 2, "shrinkB": 2}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
    if text:
        middle = (start[0] + end[0]) / 2
        axes.text(middle, start[1] + 0.12, text, ha="center", va="bottom", fontsize=8)


def draw_dense(axes: Axes) -> None:
    axes.set_title("dense: all sites at once", loc="left", fontsize=11)
    box(axes, 0.0, 2.1, 1.3, 0.8, "am\n[B, T, D]", KEPT)
    box(axes, 0.0, 0.7, 1.3, 0.8, "lm\n[B, S+1, D]", KEPT)
    box(axes, 2.2, 1.2, 1.5, 1.2, "hidden\n[N, H]", LARGE)
    for shift, name in ((0.5, "temporaries"), (0.25, "gradient"), (0.0, "logits\n[N, C]")):
        box(axes, 4.7 + shift, 0.3 + shift, 2.6, 2.4, name if not shift else "", LARGE)
        if shift:
            axes.text(7.2 + shift, 2.75 + shift - 0.02, name, fontsize=8, ha="right", va="top")
    box(axes, 9.0, 1.4, 1.5, 0.8, "log-probs\n[N, 2]", KEPT)
    box(axes, 11.5, 1.4, 1.1, 0.8, "loss", KEPT)
    arrow(axes, (1.3, 2.5), (2.2, 2.0))
    arrow(axes, (1.3, 1.1), (2.2, 1.6))
    arrow(axes, (3.7, 1.8), (4.7, 1.8), "head")
    arrow(axes, (7.8, 1.8), (9.0, 1.8), "gather")
    arrow(axes, (10.5, 1.8), (11.5, 1.8), "lattice")


def draw_panda(axes: Axes) -> None:
    axes.set_title("PANDA: one tile at a time, in backward again", loc="left", fontsize=11)
    box(axes, 0.0, 2.1, 1.3, 0.8, "am\n[B, T, D]", KEPT)
    box(axes, 0.0, 0.7, 1.3, 0.8, "lm\n[B, S+1, D]", KEPT)
    box(axes, 2.2, 1.5, 1.5, 0.6, "rows of a tile", PASSING)
    box(axes, 4.7, 1.35, 1.5, 0.9, "logits\nof a tile", PASSING)
    box(axes, 4.7, 0.3, 2.6, 2.4, "", "none")
    axes.text(7.25, 0.35, "[N, C] never exists", fontsize=8, ha="right", va="bottom")
    box(axes, 9.0, 2.0, 1.5, 0.8, "log-probs\n[N, 2]", KEPT)
    box(axes, 9.0, 0.7, 1.5, 0.8, "log_z\n[N]", KEPT)
    box(axes, 11.5, 1.4, 1.1, 0.8, "loss", KEPT)
    arrow(axes, (1.3, 2.5), (2.2, 1.95))
    arrow(axes, (1.3, 1.1), (2.2, 1.65))
    arrow(axes, (3.7, 1.8), (4.7, 1.8), "head")
    arrow(axes, (6.2, 1.9), (9.0, 2.4))
    arrow(axes, (6.2, 1.7), (9.0, 1.1))
    arrow(axes, (10.5, 2.4), (11.5, 1.95))


def main() -> None:
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5.4), facecolor="white")
    draw_dense(above)
    draw_panda(below)
    for axes in (above, below):
        axes.set_xlim(-0.1, 12.8)
        axes.set_ylim(0.0, 3.4)
        axes.axis("off")
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor=fill, edgecolor="#444444")
        for fill in (KEPT, PASSING, LARGE)
    ]
    figure.legend(
        handles, ["kept for backward", "a tile: exists for a moment", "large: N sites"],
        loc="lower center", ncol=3, frameon=False, fontsize=9,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(OUT, dpi=110)
    print(f"wrote {OUT.relative_to(Path.cwd()) if OUT.is_relative_to(Path.cwd()) else OUT.name}")


if __name__ == "__main__":
    main()
