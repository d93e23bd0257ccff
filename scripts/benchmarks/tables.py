"""The columns of each benchmark's table, on the screen and in RESULTS.md."""

from __future__ import annotations

from typing import Any

from benchmarks.results import Column, mib, number, text

_METHOD = Column("method", text("label"))
_PEAK = Column("peak above inputs, MiB", mib("peak_bytes"))
_SECONDS = Column("s", number("seconds", ".3f"))
_SHARES = Column(
    "sites forward / backward",
    lambda row: (
        f"{row['forward_share']:.0%} / {row['backward_share']:.0%}"
        if row["arm"].startswith("panda") and row.get("part") != "simple"
        else None
    ),
)


def part_of_dense(row: dict[str, Any]) -> str | None:
    """A peak as a fraction of the dense loss's; None where it was too small to measure."""
    return None if row["memory_ratio"] is None else f"1/{row['memory_ratio']:.1f}"


def _peak_or_mark(row: dict[str, Any]) -> str:
    return "OOM" if row["is_out_of_memory"] else f"{row['peak_bytes'] / 2**20:.0f}"


COLUMNS: dict[str, list[Column]] = {
    "loss": [
        Column("part", text("part")),
        _METHOD,
        _PEAK,
        Column("of dense", part_of_dense),
        _SECONDS,
        Column("of dense", number("time_ratio", ".2f")),
        _SHARES,
        Column("loss apart", number("loss_rel", ".0e")),
        Column("gradient rel-L2", number("grad_rel_l2", ".1e")),
        Column("worst tensor", number("worst_grad_rel_l2", ".1e")),
        Column("frames with another band", text("moved_frames")),
    ],
    "classes": [
        Column("C", text("C")),
        _METHOD,
        Column("peak above inputs, MiB", _peak_or_mark),
        Column("copies of (W + b)", number("head_copies", ".2f")),
        Column("s", lambda row: None if row["is_out_of_memory"] else f"{row['seconds']:.3f}"),
        Column("slope in C, copies of (W + b)", number("slope_copies", ".2f")),
    ],
    "public": [
        Column("batch", text("batch")),
        _METHOD,
        Column("lattice", text("lattice")),
        Column("utterances", text("utterances")),
        Column("peak above inputs, MiB", _peak_or_mark),
        Column("s", lambda row: None if row["is_out_of_memory"] else f"{row['seconds']:.2f}"),
        Column("MiB per utterance", number("mib_per_utterance", ".1f")),
        Column("s per utterance", number("seconds_per_utterance", ".3f")),
    ],
    "capacity": [
        Column("recipe", text("recipe")),
        _METHOD,
        Column("C", text("C")),
        Column("largest --max-duration, s", lambda row: f"{row['bound']}{row['max_duration']:.0f}"),
        Column("peak there, MiB", mib("peak_bytes")),
        Column("of dense", number("capacity_ratio", ".1f")),
    ],
    "workspace": [
        Column("workspace_mib", number("workspace_mib", "g")),
        _METHOD,
        _PEAK,
        _SECONDS,
    ],
}


def title(figures: dict[str, Any]) -> str:
    """One line that says which problem a document's figures are of."""
    settings = figures["settings"]
    shape = settings.get("shape", {})
    size = " ".join(f"{k}={v}" for k, v in shape.items() if k != "shortest")
    name = figures["benchmark"]
    if name == "loss":
        return (
            f"Transducer loss, {settings['corpus']}, {settings['adjoints']} adjoints "
            f"({settings['carrying_share']:.0%} of the sites carry all but 1e-6 of them): {size}"
        )
    if name == "classes":
        cap = settings["cap_bytes"] / 2**30
        return f"Pruned loss against C, N={settings['sites']}, cap {cap:g} GiB"
    if name == "public":
        return "Public transducer-loss-benchmarking shapes, V=500"
    if name == "capacity":
        return f"Capacity: whole loss within {settings['budget_bytes'] / 2**20:g} MiB"
    return f"Workspace of the tiles, whole loss, {settings['adjoints']} adjoints: {size}"
