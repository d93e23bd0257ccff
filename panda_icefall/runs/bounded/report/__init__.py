"""The report of a bounded run: ``report.json``, ``report.md``, ``report.html`` and PNG figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from panda_icefall.runs.atomic_file import replace_file
from panda_icefall.runs.bounded.report.document import build_document
from panda_icefall.runs.bounded.report.figures import FIGURE_FILES, draw_figures
from panda_icefall.runs.bounded.report.html import as_html
from panda_icefall.runs.bounded.report.markdown import as_markdown
from panda_icefall.runs.memory.log import finite_json

__all__ = ["write_report"]

_LATER = "Figures are drawn when the run ends; the numbers so far are all here."


def write_report(content: Mapping[str, Any], folder: Path, *, with_figures: bool = True) -> Path:
    """Write the report of what a bounded run has found so far, in place of an earlier one.

    ``report.json`` holds ``content`` itself, NaN and infinities spelt as text, and can be given
    back to this function. Figures whose numbers are not there are left out, and an earlier one of
    that name is removed. Every file is replaced whole, so that no reader sees half of one.

    Args:
      content: JSON-able. Every key may be absent or ``None`` while the run is young: ``title``,
        ``state`` (``running``, ``complete``, ``partial``), ``reason``, ``passed``, ``verdicts``,
        ``command``, ``config``, ``config_path``, ``data``, ``versions``, ``started``, ``seconds``,
        ``stages``, ``contract`` (as in ``panda-check.json``), ``arms``, ``trajectory``,
        ``final_parameters``, ``resume``.
      folder: Where the files go; made where it is missing.
      with_figures: Draw the figures, which takes a second or two; else the report says that they
        are still to come.

    Returns:
      The path of ``report.html``, which needs no other file.

    Raises:
      TypeError: ``content`` holds something that JSON cannot carry.
      OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clean = finite_json(content)
    text = json.dumps(clean, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    replace_file(folder / "report.json", text.encode("utf-8"))
    figures, without_figures = _figures(clean) if with_figures else ({}, _LATER)
    document = build_document(clean, figures, without_figures)
    for name in FIGURE_FILES:
        if name in figures:
            replace_file(folder / name, figures[name])
        else:
            (folder / name).unlink(missing_ok=True)
    replace_file(folder / "report.md", as_markdown(document).encode("utf-8"))
    path = folder / "report.html"
    replace_file(path, as_html(document, figures).encode("utf-8"))
    return path


def _figures(content: Mapping[str, Any]) -> tuple[dict[str, bytes], Optional[str]]:
    """The figures, or why there are none."""
    try:
        return draw_figures(content), None
    except ImportError as error:
        return {}, (
            f"No figures: matplotlib cannot be loaded ({error}). Install it with "
            "pip install 'panda-icefall[plots]'; the numbers are all here and in report.json."
        )
