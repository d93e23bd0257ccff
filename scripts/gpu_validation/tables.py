"""The document of a validation as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpu_validation.roofline import Rows, best_seconds, tile_rates

Document = Mapping[str, Any]
_COMPARED = ("adjoints", "classes", "precision", "part")
GOAL_OF = ("panda", 5537, "bf16", "whole")
MOST_OF_DENSE, LEAST_OF_THE_RATE = {"trained": 0.5, "random": 1.0}, 0.5


def markdown(document: Document) -> str:
    """All sections: what they ran on, what failed, what was left out, and every table."""
    sections = document["sections"]
    lines = [f"# {document['title']}", "", document["note"], ""]
    lines += table(
        {
            "section": name,
            "status": section["status"],
            "seconds": section["seconds"],
            "checks": len(section["checks"]),
            "failed": sum(not check["is_ok"] for check in section["checks"]),
            "not here": len(section["skipped"]),
            "cut": len(section["cut"]),
        }
        for name, section in sections.items()
    )
    lines += ["", *table(goals(sections))]
    for name, section in sections.items():
        lines += ["", f"## {name}", ""]
        lines += table({"": key, "value": value} for key, value in section["facts"].items())
        failed = [check for check in section["checks"] if not check["is_ok"]]
        lines += [f"- **failed**: {check['name']}: {_details(check)}" for check in failed]
        lines += [f"- not here: {case['name']}: {case['why']}" for case in section["skipped"]]
        lines += [f"- no time left: {cut}" for cut in section["cut"]]
        for title, rows in tables_of(name, sections).items():
            lines += ["", f"### {title}", "", *table(rows)]
    return "\n".join(lines) + "\n"


def tables_of(name: str, sections: Mapping[str, Any]) -> dict[str, Rows]:
    """A section's tables; those of methods have times beside the dense loss's and the roofline."""
    found = dict(sections[name]["tables"])
    for title in ("methods", "workspaces"):
        if title in found:
            found[title] = compared(found[title], sections)
    return found


def compared(rows: Rows, sections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows for reading: milliseconds, MiB, and what they are by."""
    probes = sections.get("probes", {}).get("tables", {})
    rates = tile_rates(probes.get("products", []))
    gbytes = next((row["gbytes"] for row in probes.get("bandwidth", [])), 0.0)
    methods = sections["bench"]["tables"].get("methods", [])
    dense = {_key(row): row for row in methods if row["arm"] == "dense"}
    return [_compared(row, dense.get(_key(row), {}), rates, gbytes) for row in rows]


def goals(sections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What PANDA's step at 5537 classes in bf16 took, beside what it is to take."""
    methods = sections.get("bench", {}).get("tables", {}).get("methods", [])
    return [
        {
            "adjoints": row["adjoints"],
            "of dense": told.get("of dense"),
            "goal, at most": MOST_OF_DENSE[row["adjoints"]],
            "of the GEMM rate": told.get("of the GEMM rate"),
            "goal, at least": LEAST_OF_THE_RATE,
        }
        for row, told in zip(methods, compared(methods, sections) if methods else [])
        if (row["arm"], *_key(row)[1:]) == GOAL_OF
    ]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _COMPARED)


def _compared(
    row: Mapping[str, Any], dense: Mapping[str, Any], rates: Mapping[str, float], gbytes: float
) -> dict[str, Any]:
    named = {name: row[name] for name in _COMPARED} | {"method": row["label"]}
    if row["workspace_mib"] is not None:
        named["workspace, MiB"] = row["workspace_mib"]
    if row["is_out_of_memory"]:
        return {**named, "ms": "out of memory"}
    best = best_seconds(row, rates, gbytes)
    rate = row["product_flops"] / row["seconds"] / 1e12
    of_rate = rate / rates[row["precision"]] if row["precision"] in rates else None
    return {
        **named,
        "ms": 1e3 * row["seconds"],
        "quartiles": " to ".join(f"{1e3 * row[f'seconds_{q}']:.3g}" for q in ("q1", "q3")),
        "of dense": _by(row["seconds"], dense.get("seconds")),
        "busy": _by(row["busy_seconds"], row["seconds"]),
        "launches": row["launches"],
        "peak allocated, MiB": row["peak_allocated_bytes"] / 2**20,
        "of dense's": _by(row["peak_allocated_bytes"], dense.get("peak_allocated_bytes")),
        "reserved, MiB": _by(row["peak_reserved_bytes"], 2**20),
        "roofline, ms": None if best is None else 1e3 * best,
        "of the roofline": _by(row["seconds"], best),
        "of the GEMM rate": of_rate,
        "sites backward": row["backward_share"],
    }


def _by(mine: float | None, other: float | None) -> float | None:
    return mine / other if mine is not None and other else None


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of one table; its columns are all that some row has."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        return []
    cells = [columns, ["---"] * len(columns)]
    cells += [[_cell(row.get(name)) for name in columns] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _details(check: Mapping[str, Any]) -> str:
    found = {key: value for key, value in check.items() if key not in ("kind", "name", "is_ok")}
    text = ", ".join(f"{key}: {_cell(value)}" for key, value in found.items())
    return text[-400:] or "no details"
