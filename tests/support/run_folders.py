"""Folders as runs leave them: a memory log, the report of a contract check."""

import json

import bounded_content as made

MIB = 2**20


def write_log(
    folder, losses, *, peak=100, use_panda=False, with_parts=True, has_ended=True, **header
):
    """A memory log in a run's folder; sizes in MiB."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "row": "header",
            "time": "2026-11-26T07:00:00+00:00",
            "versions": {"torch": "2.13.0", "threads": 1},
            "options": {"use_panda": use_panda},
            "memory": {"rss_bytes": 50 * MIB},
            **header,
        }
    ]
    for step, loss in enumerate(losses, 1):
        memory = {"rss_bytes": 60 * MIB, "peak_rss_bytes": (peak + step) * MIB}
        common = {"step": step, "seconds": 0.5, **memory}
        if with_parts:
            part = {"row": "part", "phase": "encoder", "within": "compute_loss"}
            rows.append({**common, **part, "seconds": 0.2})
        rows.append({**common, "row": "phase", "phase": "compute_loss", "loss": loss, "frames": 1})
        rows.append({**common, "row": "phase", "phase": "backward_update"})
    if has_ended:
        rows.append({"row": "end", "reason": "bound"})
    (folder / "memory.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_contract(folder, *, rank="", **changed):
    """The report of a contract check that holds, but for what is changed."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**made.contract(), **changed}
    (folder / f"panda-check{rank}.json").write_text(json.dumps(content))
