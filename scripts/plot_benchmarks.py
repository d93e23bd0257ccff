"""Figures of the benchmarks from their JSON files, as PNG beside them.

    python scripts/plot_benchmarks.py

memory-against-classes and time-ratio-against-classes from bench_classes.py, capacity from
bench_capacity.py, memory-by-component from bench_loss.py; one of each per JSON file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.arms import ARMS
from benchmarks.tables import KEYS, part_of
from results_tables import read

from panda_icefall.runs.report.figures.style import (
    COLOURS,
    MUTED,
    VIOLATED,
    as_png,
    dress,
    styled,
)

# Methods keep their colour and mark in all figures.
_STYLE: dict[str, tuple[str, str]] = {
    "dense": (COLOURS["dense"], "o"),
    "k2": ("#9a7b4f", "o"),
    "panda": (COLOURS["routed"], "s"),
    "panda-all-sites": ("#e8925f", "D"),
    "panda-torch": ("#c9744f", "P"),
    "panda-no-model": ("#f3c6a5", "s"),
    "class-tiles": (COLOURS["twin"], "^"),
    "row-tiles": ("#3f8f5f", "v"),
    "row-chunks": ("#8a63a8", "P"),
}
# Stacked from below: what no method can do without, then what it holds beside.
_COMPONENTS = (
    ("parameter_bytes", "gradients of parameters", "#5b6770"),
    ("input_bytes", "gradients of inputs", "#a9b3bb"),
    ("rest_bytes", "everything else", COLOURS["routed"]),
)


def drawn(figures: dict[str, Any]) -> dict[str, Any]:
    """A document with one list of rows: of several sessions the quietest and the smallest."""
    keys = KEYS[figures["benchmark"]]
    rows = []
    for group in results.merged(figures, keys):
        row = dict(group[-1])
        for name in ("seconds_min", "peak_bytes"):
            if row.get(name) is not None:
                row[name] = min(r[name] for r in group if r.get(name) is not None)
        rows.append(row)
    return {**figures, "rows": rows}


def lines(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each method and its rows, ascending in C."""
    for arm in ARMS:
        of_arm = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["C"])
        if of_arm:
            yield arm, of_arm


def class_axis(axes: Any, rows: list[dict[str, Any]]) -> None:
    """C on a logarithmic scale, ticked where it was measured."""
    classes = sorted({row["C"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(classes, [f"{C:,}" for C in classes], rotation=30, ha="right")
    axes.minorticks_off()
    axes.set_xlabel("classes, C")
    dress(axes)


def memory_against_classes(figures: dict[str, Any]) -> bytes:
    """Peaks by method, crosses on the cap where one did not fit."""
    import matplotlib.pyplot as plt

    cap_mib = figures["settings"]["cap_bytes"] / 2**20
    figure, axes = plt.subplots(figsize=(7.2, 4.2), constrained_layout=True)
    for i, (arm, rows) in enumerate(lines(figures["rows"])):
        colour, mark = _STYLE[arm]
        fitting = [row for row in rows if not row["is_out_of_memory"]]
        axes.plot(
            [row["C"] for row in fitting],
            [row["peak_bytes"] / 2**20 for row in fitting],
            color=colour,
            marker=mark,
            label=ARMS[arm].label,
        )
        for row in rows[len(fitting) :]:
            # Side by side where several methods fail at one C.
            axes.plot(row["C"] * 1.12**i, cap_mib, "x", color=colour, ms=9, mew=2.2, clip_on=False)
    axes.axhline(cap_mib, color=VIOLATED, lw=1, ls="--")
    axes.text(0.01, cap_mib, f"cap {cap_mib:.0f} MiB, x: out of memory", color=VIOLATED,
              transform=axes.get_yaxis_transform(), va="bottom")  # fmt: skip
    axes.set_yscale("log")
    axes.set(
        title=f"Pruned loss, peak above inputs, N={figures['settings']['sites']}", ylabel="MiB"
    )
    class_axis(axes, figures["rows"])
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
    return finished(figure)


def time_ratio_against_classes(figures: dict[str, Any]) -> bytes:
    """Minimum seconds by those of the dense loss, where that one fits."""
    import matplotlib.pyplot as plt

    rows = [row for row in figures["rows"] if not row["is_out_of_memory"]]
    dense = {row["C"]: row["seconds_min"] for row in rows if row["arm"] == "dense"}
    compared = [row for row in rows if row["C"] in dense]
    figure, axes = plt.subplots(figsize=(7.2, 3.8), constrained_layout=True)
    for arm, of_arm in lines(compared):
        colour, mark = _STYLE[arm]
        ratios = [row["seconds_min"] / dense[row["C"]] for row in of_arm]
        axes.plot(
            [r["C"] for r in of_arm], ratios, color=colour, marker=mark, label=ARMS[arm].label
        )
    axes.set(title="Time of forward and backward, dense = 1", ylabel="ratio")
    axes.set_ylim(bottom=0)
    class_axis(axes, compared)
    axes.legend()
    return finished(figure)


def capacity(figures: dict[str, Any]) -> bytes:
    """Bars of the largest --max-duration, by recipe and method."""
    import matplotlib.pyplot as plt

    rows = figures["rows"]
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure, axes = plt.subplots(figsize=(6.4, 3.8), constrained_layout=True)
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        of_arm = {row["recipe"]: row for row in rows if row["arm"] == arm}
        heights = [of_arm[recipe]["max_duration"] for recipe in recipes]
        at = [j + (i - (len(arms) - 1) / 2) * width for j in range(len(recipes))]
        bars = axes.bar(at, heights, width * 0.92, color=_STYLE[arm][0], label=ARMS[arm].label)
        texts = [
            f"{of_arm[r]['bound'].replace('>= ', '≥')}{of_arm[r]['max_duration']:.0f}"
            for r in recipes
        ]
        axes.bar_label(bars, texts, color=MUTED, padding=2)
    names = [f"{r}\nC={next(row['C'] for row in rows if row['recipe'] == r)}" for r in recipes]
    axes.set_xticks(range(len(recipes)), names)
    budget_mib = figures["settings"]["budget_bytes"] / 2**20
    axes.set(title=f"Audio per batch whose loss fits {budget_mib:.0f} MiB", ylabel="seconds")
    axes.set_yscale("log")
    dress(axes, grid="y")
    axes.legend()
    return finished(figure)


def memory_by_component(figures: dict[str, Any]) -> bytes:
    """Stacked peaks of the largest part that was measured, by method."""
    import matplotlib.pyplot as plt

    part = figures["rows"][0]["part"]
    rows = [row for row in figures["rows"] if row["part"] == part]
    figure, axes = plt.subplots(figsize=(7.2, 1.4 + 0.42 * len(rows)), constrained_layout=True)
    left = [0.0] * len(rows)
    for key, label, colour in _COMPONENTS:
        sizes = [component_mib(row, key) for row in rows]
        axes.barh([row["label"] for row in rows], sizes, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, sizes)]
    for i, row in enumerate(rows):
        axes.text(
            left[i], i, f" {left[i]:.0f} MiB, {part_of('memory_ratio')([row]) or '-'}", va="center"
        )
    axes.invert_yaxis()
    axes.margins(x=0.22)
    settings = figures["settings"]
    axes.set(
        title=f"Peak above inputs, {part} loss, {settings['corpus']} C={settings['shape']['C']}",
        xlabel="MiB",
    )
    dress(axes, grid="x")
    figure.legend(loc="outside lower center", ncols=len(_COMPONENTS))
    return finished(figure)


def component_mib(row: dict[str, Any], key: str) -> float:
    """One part of a row's peak; the gradients are in it to the byte, the rest is what is left."""
    if key != "rest_bytes":
        return row[key] / 2**20
    return max(0, row["peak_bytes"] - row["parameter_bytes"] - row["input_bytes"]) / 2**20


def finished(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    png = as_png(figure)
    plt.close(figure)
    return png


FIGURES = {
    "classes": {
        "memory-against-classes": memory_against_classes,
        "time-ratio-against-classes": time_ratio_against_classes,
    },
    "capacity": {"capacity": capacity},
    "loss": {"memory-by-component": memory_by_component},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=results.RESULTS, help="folder of JSON")
    folder = parser.parse_args().results
    import matplotlib

    matplotlib.use("Agg")
    for path in results.documents(folder):
        figures = drawn(read(path))
        for name, draw in FIGURES.get(figures["benchmark"], {}).items():
            with styled():
                png = draw(figures)
            target = folder / (path.stem.replace(figures["benchmark"], name, 1) + ".png")
            target.write_bytes(png)
            print(target)


if __name__ == "__main__":
    main()
