"""The figure of the contract: every compared quantity by batch, coloured by its bound."""

import math
from typing import TYPE_CHECKING

from panda_icefall.runs.report import units
from panda_icefall.runs.report.contract_rows import Cell, ContractRow, contract_rows
from panda_icefall.runs.report.figures.style import INK, MUTED, VIOLATED, blank
from panda_icefall.runs.run_record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

__all__ = ["draw_contract"]

_LOWEST, _HIGHEST = -4.0, 2.0  # log10 of distance over bound that the colours reach
_BESIDE = 0.02  # keeps a distance near the bound on its side of the colour table's jump
_WITHIN = ("#f4f7fb", "#7ea0c4")
_BEYOND = (VIOLATED, "#4a0a2a")  # much darker than all of _WITHIN: seen without colour too
_NO_BOUND = "#e3e6ea"
_LONGEST_NAME = 56
_MOST_TEXT_COLUMNS = 12


def draw_contract(record: RunRecord) -> "Figure | None":
    """``contract.png``: a heat table, quantities by batch, with each row's bound beside it.

    Returns:
      ``None`` while no batch was compared.
    """
    if record.contract is None or not record.contract.batches:
        return None
    updates = [str(batch.update) for batch in record.contract.batches]
    rows = contract_rows(record.contract)
    from matplotlib.cm import ScalarMappable

    longest = max(len(_short(row.name)) for row in rows)
    cell_width = 0.82 if len(updates) <= _MOST_TEXT_COLUMNS else 0.3
    width = 0.085 * longest + cell_width * max(len(updates), 3) + 1.9
    figure = blank(width, 0.27 * len(rows) + 1.5)
    axes = figure.subplots()
    colours, norm = _colours()
    _draw_cells(axes, rows, colours, norm)
    _label(axes, updates, rows)
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        ax=axes,
        orientation="horizontal",
        fraction=0.05,
        aspect=38,
        pad=0.02,
        extend="both",
    )
    ticks = range(int(_LOWEST), int(_HIGHEST) + 1)
    bar.set_ticks(list(ticks), labels=["bound" if t == 0 else f"{10.0**t:g}" for t in ticks])
    bar.set_label("distance / bound (logarithmic; beyond the bound: violated)")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _colours() -> "tuple[Colormap, Normalize]":
    """A map whose lightness jumps at the bound, and the scale that puts the bound there."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    bound = -_LOWEST / (_HIGHEST - _LOWEST)
    stops = [(0.0, _WITHIN[0]), (bound, _WITHIN[1]), (bound, _BEYOND[0]), (1.0, _BEYOND[1])]
    colours = LinearSegmentedColormap.from_list("contract", stops, N=600)
    return colours, Normalize(_LOWEST, _HIGHEST)


def _draw_cells(
    axes: "Axes", rows: list[ContractRow], colours: "Colormap", norm: "Normalize"
) -> None:
    from matplotlib.patches import Rectangle

    has_text = len(rows[0].cells) <= _MOST_TEXT_COLUMNS
    for y, row in enumerate(rows):
        for x, cell in enumerate(row.cells):
            excess = _excess(cell)
            face = _NO_BOUND if excess is None else colours(norm(excess))
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor="white", lw=1.5))
            is_violated = excess is not None and excess > 0
            if has_text:
                axes.text(
                    x + 0.5,
                    y + 0.5,
                    "noise" if cell.is_negligible else units.distance(cell.value),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if is_violated else INK,
                    weight="bold" if is_violated else "normal",
                )


def _label(axes: "Axes", updates: list[str], rows: list[ContractRow]) -> None:
    axes.set_xlim(0, len(updates))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([x + 0.5 for x in range(len(updates))], updates)
    axes.xaxis.tick_top()
    axes.set_xlabel("batch")
    axes.xaxis.set_label_position("top")
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [_short(row.name) for row in rows])
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_title("Distance of routed from dense", pad=10)
    right = axes.secondary_yaxis("right")
    bounds = [
        "no bound" if row.bound is None else f"\N{LESS-THAN OR EQUAL TO} {row.bound:.0e}"
        for row in rows
    ]
    right.set_yticks([y + 0.5 for y in range(len(rows))], bounds)
    right.tick_params(length=0, labelcolor=MUTED, labelsize=8)
    right.spines[:].set_visible(False)
    first_gradient = next((y for y, row in enumerate(rows) if row.is_gradient), 0)
    if first_gradient:
        axes.axhline(first_gradient, color=INK, lw=1.2)


def _excess(cell: Cell) -> float | None:
    """log10 of distance over bound, within what the colours reach; ``None`` without a judgement."""
    if cell.value is None or cell.is_negligible or not cell.bound:
        return None
    if math.isnan(cell.value) or math.isinf(cell.value):
        return _HIGHEST
    if cell.value == 0:
        return _LOWEST
    excess = math.log10(cell.value / cell.bound)
    if cell.value <= cell.bound:
        return min(max(excess, _LOWEST), -_BESIDE)
    return max(min(excess, _HIGHEST), _BESIDE)


def _short(name: str) -> str:
    """``name`` with its middle left out where it is long; the report's table has it in full."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 1) // 2
    return f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"
