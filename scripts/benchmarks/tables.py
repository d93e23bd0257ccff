"""The columns of each benchmark's table, on the screen and in RESULTS.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.results import Column, Row, mib, number, span, text

# What tells the rows of one session apart.
KEYS: dict[str, tuple[str, ...]] = {
    "loss": ("part", "arm"),
    "classes": ("C", "arm"),
    "ctc": ("C", "arm"),
    "losses": ("batch", "form", "arm"),
    "capacity": ("recipe", "arm"),
    "workspace": ("workspace_mib", "arm"),
    "profile": ("kind", "name"),
    "recursion": ("recursion",),
    "guard": ("name",),
    "versions": ("part", "version"),
}

_METHOD = Column("method", text("label"))
_PEAK = Column("peak above inputs, MiB", mib("peak_bytes"))


def _seconds(form: str) -> tuple[Column, Column]:
    """The time of a quiet machine, and what there was."""
    return (
        Column("s, minimum", number(_unless_oom("seconds_min"), form)),
        Column("s, median", number(_unless_oom("seconds"), form)),
    )


def _unless_oom(key: str) -> Callable[[Row], float | None]:
    return lambda row: None if row["is_out_of_memory"] else row[key]


def _shares(rows: Sequence[Row]) -> str | None:
    routed = [r for r in rows if r["arm"].startswith("panda") and r.get("part") != "simple"]
    shares = (number(key, ".0%")(routed) for key in ("forward_share", "backward_share"))
    return " / ".join(share for share in shares if share) or None


def _backward_share(rows: Sequence[Row]) -> str | None:
    routed = [r for r in rows if r["arm"].startswith("panda") and not r["is_out_of_memory"]]
    return number("backward_share", ".1%")(routed)


def part_of(key: str) -> Callable[[Sequence[Row]], str | None]:
    """A peak as a fraction of another; None where it was too small to measure."""

    def text_of(rows: Sequence[Row]) -> str | None:
        ratios = sorted(row[key] for row in rows if row.get(key) is not None)
        return None if not ratios else span(f"1/{ratios[0]:.1f}", f"1/{ratios[-1]:.1f}")

    return text_of


def _peak_or_mark(rows: Sequence[Row]) -> str | None:
    fits = [row for row in rows if not row["is_out_of_memory"]]
    return mib("peak_bytes", ".0f")(fits) or "OOM"


COLUMNS: dict[str, list[Column]] = {
    "loss": [
        Column("part", text("part")),
        _METHOD,
        _PEAK,
        Column("of dense", part_of("memory_ratio")),
        *_seconds(".3f"),
        Column("minima, of dense", number("time_ratio", ".2f")),
        Column("medians, of dense", number("median_ratio", ".2f")),
        Column("minima, of k2 1.23.4", number("k2_time_ratio", ".2f")),
        Column("GEMM limit, s", number("limit_seconds", ".3f")),
        Column("of the limit", number("of_limit", ".2f")),
        Column("sites forward / backward", _shares),
        Column("loss apart", number("loss_rel", ".0e")),
        Column("gradient rel-L2", number("grad_rel_l2", ".1e")),
        Column("worst tensor", number("worst_grad_rel_l2", ".1e")),
        Column("frames with another band", number("moved_frames", "g")),
    ],
    "classes": [
        Column("C", text("C")),
        _METHOD,
        Column("peak above inputs, MiB", _peak_or_mark),
        Column("copies of (W + b)", number("head_copies", ".2f")),
        *_seconds(".3f"),
        Column("minima, of dense", number("time_ratio", ".2f")),
        Column("slope in C, copies of (W + b)", number("slope_copies", ".2f")),
    ],
    "ctc": [
        Column("C", text("C")),
        _METHOD,
        _PEAK,
        Column("of dense", part_of("memory_ratio")),
        *_seconds(".3f"),
        Column("minima, of dense", number("time_ratio", ".2f")),
        Column("loss apart", number("loss_rel", ".0e")),
        Column("gradient rel-L2", number("grad_rel_l2", ".1e")),
    ],
    "losses": [
        Column("batch", text("batch")),
        Column("loss", text("form")),
        _METHOD,
        Column("peak above inputs, MiB", _peak_or_mark),
        Column("of dense", part_of("memory_ratio")),
        Column("of torchaudio", part_of("torchaudio_memory_ratio")),
        *_seconds(".3f"),
        Column("minima, of dense", number("time_ratio", ".2f")),
        Column("minima, of torchaudio", number("torchaudio_time_ratio", ".2f")),
        Column("of the GEMM limit", number("of_limit", ".2f")),
        Column("sites backward", _backward_share),
        Column("loss apart", number("loss_rel", ".0e")),
        Column("gradient rel-L2", number("grad_rel_l2", ".1e")),
    ],
    "capacity": [
        Column("recipe", text("recipe")),
        _METHOD,
        Column("C", text("C")),
        Column("", text("bound")),
        Column("largest --max-duration, s", number("max_duration", ".0f")),
        Column("peak there, MiB", mib("peak_bytes")),
        Column("of dense", number("capacity_ratio", ".1f")),
    ],
    "workspace": [
        Column("workspace_mib", number("workspace_mib", "g")),
        _METHOD,
        _PEAK,
        *_seconds(".3f"),
    ],
    "profile": [
        Column("kind", text("kind")),
        Column("part", text("name")),
        Column("s, minimum", number("seconds_min", ".3f")),
        Column("s, median", number("seconds", ".3f")),
        Column("share", number("share", ".0%")),
        Column("GFLOP", number("gflop", ".1f")),
    ],
    "recursion": [
        Column("recursion", text("recursion")),
        Column("step, s, minimum", number("seconds_min", ".3f")),
        Column("step, s, median", number("seconds", ".3f")),
        Column("of it recursions, s", number("recursions_s", ".4f")),
        Column("share", number("share", ".1%")),
        Column("minima, more than with k2's", number("added", ".1%")),
    ],
    "guard": [
        Column("", text("name")),
        Column("s, minimum", number("seconds_min", ".4f")),
        Column("s, median", number("seconds", ".4f")),
        Column("of the losses' own time", number("share", ".3%")),
    ],
    "versions": [
        Column("part", text("part")),
        Column("checkout", text("version")),
        _PEAK,
        Column("of before", number("memory_ratio", ".2f")),
        Column("s, minimum", number("seconds_min", ".3f")),
        Column("s, median", number("seconds", ".3f")),
        Column("minima, of before", number("time_ratio", ".2f")),
        Column("medians, of before", number("median_ratio", ".2f")),
        Column("loss apart", number("loss_rel", ".0e")),
        Column("worst tensor", number("worst_grad_rel_l2", ".1e")),
    ],
}


def title(figures: dict[str, Any]) -> str:
    """One line that says which problem a document's figures are of, and in which precision."""
    settings = figures["settings"]
    device, dtype = settings.get("device", "cpu"), settings.get("dtype", "fp32")
    is_usual = (device, dtype) == ("cpu", "fp32")
    return _problem(figures) + ("" if is_usual else f" ({device}, {dtype})")


def _problem(figures: dict[str, Any]) -> str:
    settings = figures["settings"]
    shape = settings.get("shape", {})
    size = " ".join(f"{k}={v}" for k, v in shape.items() if k != "shortest")
    name = figures["benchmark"]
    if name == "loss":
        return (
            f"Transducer loss, {settings['corpus']}, {settings['adjoints']} adjoints "
            f"({_carrying(figures)} of the sites carry all but 1e-6 of them): {size}"
        )
    if name == "classes":
        cap = settings["cap_bytes"] / 2**30
        return f"Pruned loss against C, N={settings['sites']}, cap {cap:g} GiB"
    if name == "ctc":
        return f"CTC head: {size}"
    if name == "losses":
        return (
            f"Every transducer loss, joiner included, {settings['adjoints']} adjoints, cap "
            f"{settings['cap_bytes'] / 2**30:g} GiB: {_shapes(settings['shapes'])}"
        )
    if name == "capacity":
        return f"Capacity: whole loss within {settings['budget_bytes'] / 2**20:g} MiB"
    if name == "profile":
        return f"Where a step's time goes, {settings['adjoints']} adjoints: {size}"
    if name == "recursion":
        return f"Recursion over the lattice, whole loss, {settings['adjoints']} adjoints: {size}"
    if name == "guard":
        every = settings["every"]
        return f"--panda-verify-every {every}, {settings['adjoints']} adjoints: {size}"
    if name == "versions":
        now = ", ".join(session["facts"]["now"] for session in figures["sessions"])
        return f"{now} against {settings['before']}, {settings['adjoints']} adjoints: {size}"
    return f"Workspace of the tiles, whole loss, {settings['adjoints']} adjoints: {size}"


def _shapes(shapes: dict[str, dict[str, Any]]) -> str:
    """The sizes of several batches, and of those that differ in C alone once."""
    names = ("B", "T", "S", "s_range", "H")
    sizes: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        sizes.setdefault(" ".join(f"{k}={shape[k]}" for k in names), []).append(name)
    return "; ".join(f"{size} ({', '.join(found)})" for size, found in sizes.items())


def _carrying(figures: dict[str, Any]) -> str | None:
    """The share of the sites that matter, over all sessions."""
    return number("carrying_share", ".0%")([session["facts"] for session in figures["sessions"]])


@contextmanager
def measuring(
    benchmark: str, settings: dict[str, Any], path: Path, facts: dict[str, Any] | None = None
) -> Iterator[list[Row]]:
    """One session: rows that are filled in, then added to the file and shown with all others.

    Args:
      settings: what is measured; a file of other ones is refused before anything is.
      facts: see `results.add_session`; may be filled in until the end.
    """
    document = results.begin(benchmark, settings, path)
    rows: list[Row] = []
    try:
        yield rows
    finally:  # what an interrupted session has measured is kept
        if rows:
            results.add_session(document, path, rows, facts)
            results.print_table(title(document), document, COLUMNS[benchmark], KEYS[benchmark])
