"""The figures of a report, as PNG bytes; the only part that needs matplotlib."""

from panda_icefall.runs.report.figures.contract import draw_contract
from panda_icefall.runs.report.figures.loss import draw_loss
from panda_icefall.runs.report.figures.memory import draw_memory, draw_phases
from panda_icefall.runs.report.figures.style import as_png, styled
from panda_icefall.runs.run_record import RunRecord

__all__ = ["FIGURE_FILES", "draw_figures"]

_DRAWERS = {
    "loss.png": draw_loss,
    "memory.png": draw_memory,
    "phases.png": draw_phases,
    "contract.png": draw_contract,
}
FIGURE_FILES = tuple(_DRAWERS)


def draw_figures(record: RunRecord) -> dict[str, bytes]:
    """Every figure whose numbers are in ``record``: file name -> PNG.

    Raises:
      ImportError: matplotlib is missing or cannot be loaded.
    """
    import matplotlib  # noqa: F401 - fails here, also where there is nothing to draw yet

    with styled():
        drawn = {name: draw(record) for name, draw in _DRAWERS.items()}
        return {name: as_png(figure) for name, figure in drawn.items() if figure is not None}
