"""One trained arm of a bounded run, read back from what its process left behind."""

import math
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.memory.log import read_last_run

__all__ = ["final_parameters", "losses_of", "non_finite_steps", "read_arm"]

_PHASES = ("compute_loss", "backward_update")
_LOSSES = ("simple_loss", "pruned_loss")
_COUNTED = (
    "losses_routed losses_dense simple_losses_routed simple_losses_of_tensors simple_losses_dense "
    "sites sites_evaluated sites_backward tiles_forward tiles_backward "
    "adjoint_mass adjoint_mass_skipped forward_seconds backward_seconds "
    "simple_forward_seconds simple_backward_seconds"
).split()


def read_arm(memory_log: Path) -> dict[str, Any]:
    """Steps, memory and counters of one process, from its memory log.

    A log that ends early is read as far as it goes; a step counts once both its outer phases were
    written.

    Args:
      memory_log: What ``--panda-memory-log`` named; it may not be there yet.

    Returns:
      ``steps`` (a list of dicts: loss per frame, seconds, peak bytes, of them those that the losses
      added, grad scale and the phases of each step), ``memory_kind``, ``base_bytes`` (before the
      first step), ``options`` (PANDA's, of that process) and ``counters``. Of several runs in one
      log, those of the last one.
    """
    rows = read_last_run(memory_log) if memory_log.exists() else []
    header = rows[0] if rows and rows[0].get("row") == "header" else {}
    outer = [row for row in rows if row.get("row") == "phase"]
    by_step: dict[int, dict[str, dict[str, Any]]] = {}
    for row in outer:
        if "error" not in row:
            by_step.setdefault(row["step"], {})[row["phase"]] = row
    parts: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("row") == "part":
            parts.setdefault(row["step"], []).append(row)
    steps = [
        _step(number, phases, parts.get(number, []))
        for number, phases in sorted(by_step.items())
        if phases.keys() >= set(_PHASES)
    ]
    on_gpu = any("allocated_bytes" in row for row in outer)
    materialised: dict[str, int] = {}
    for row in outer:
        for name, count in row.get("materialised", {}).items():
            materialised[name] = materialised.get(name, 0) + count
    return {
        "steps": steps,
        "memory_kind": "CUDA allocated" if on_gpu else "process RSS",
        "base_bytes": _size(header["memory"]) if "memory" in header else None,
        "options": header.get("options"),
        "counters": {
            **{name: sum(row.get(name, 0) for row in outer) for name in _COUNTED},
            "materialised": materialised,
        },
    }


def _step(
    number: int, outer: dict[str, dict[str, Any]], parts: list[dict[str, Any]]
) -> dict[str, Any]:
    loss = outer["compute_loss"]
    phases: dict[str, dict[str, float]] = {}
    for row in parts:
        phase = phases.setdefault(row["phase"], {"seconds": 0.0, "peak_bytes": 0.0})
        phase["seconds"] += row["seconds"]
        phase["peak_bytes"] = max(phase["peak_bytes"], _peak(row))
    return {
        "step": number,
        "batch_idx_train": loss.get("batch_idx_train"),
        "loss": float(loss.get("loss", math.nan)) / (loss.get("frames") or 1),
        "seconds": sum(row["seconds"] for row in outer.values()),
        "peak_bytes": max(map(_peak, outer.values())),
        "losses_bytes": _added_by_losses(parts),
        "grad_scale": outer["backward_update"].get("grad_scale"),
        "phases": phases,
    }


def _added_by_losses(parts: list[dict[str, Any]]) -> Optional[float]:
    """The peak within the losses, above the memory that the encoder had left."""
    peaks = [_peak(row) for row in parts if row["phase"] in _LOSSES]
    before = [_size(row) for row in parts if row["phase"] == "encoder"]
    if not peaks or not before or before[-1] is None:
        return None
    return max(0.0, max(peaks) - before[-1])


def _size(row: dict[str, Any]) -> Optional[float]:
    return row.get("allocated_bytes", row.get("rss_bytes"))


def _peak(row: dict[str, Any]) -> float:
    return row.get("peak_bytes", row.get("peak_rss_bytes", 0))


def losses_of(arm: dict[str, Any]) -> list[float]:
    """Loss per frame of every step."""
    return [step["loss"] for step in arm["steps"]]


def non_finite_steps(arm: dict[str, Any]) -> list[int]:
    """Numbers of the steps whose loss is NaN or infinite."""
    return [step["step"] for step in arm["steps"] if not math.isfinite(step["loss"])]


def final_parameters(exp_dir: Path) -> dict[str, Tensor]:
    """The model of the checkpoint with which a recipe ended its first epoch.

    Raises:
      UsageError: There is none, or it holds no model.
    """
    path = exp_dir / "epoch-1.pt"
    if not path.is_file():
        raise UsageError(f"{path}: not written, expected the recipe's checkpoint of epoch 1")
    # Written by this run a moment ago; recipes keep Path objects and the like in it.
    content = torch.load(path, map_location="cpu", weights_only=False)
    if "model" not in content:
        raise UsageError(f"{path}: got the keys {sorted(content)}, expected one named model")
    return dict(content["model"])
