"""What a step needs beside its losses, from the memory log of a run of the same recipe."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panda_icefall.runs.errors import UsageError, reading
from panda_icefall.runs.memory.reading import find_memory_logs, read_last_run
from panda_icefall.runs.records import BACKWARD_UPDATE, COMPUTE_LOSS, ENCODER

__all__ = ["Calibration", "read_calibration"]

_SHARE = 0.9  # of the steps that need no more for a frame than what is taken


@dataclass(frozen=True)
class Calibration:
    """A recipe's step without its losses.

    Attributes:
      path: The memory log.
      base_bytes: Parameters, optimizer state and all else that is there between two steps.
      frame_bytes: What the encoder leaves for backward, for each frame after subsampling.
      peak_frame_bytes: The peak of the step above ``base_bytes``, for each frame, where the run was
        routed: then it is the encoder's own backward. A dense run does not show it: None.
      peaks: Frames and peak of each step that was looked at.
      kind: What its bytes are.
      words: The recipe's own of the command line, and what ``--panda-recipe-params`` gave.
    """

    path: Path
    base_bytes: int
    frame_bytes: float
    peak_frame_bytes: float | None
    peaks: list[tuple[int, int]]
    kind: str
    words: tuple[str, ...] = ()

    @property
    def is_routed(self) -> bool:
        """Whether the run was routed."""
        return self.peak_frame_bytes is not None

    def encoder_bytes(self, frames: int) -> int:
        """What the encoder keeps of so many frames."""
        return round(self.frame_bytes * frames)

    def backward_bytes(self, frames: int) -> int:
        """The peak of the encoder's own backward, with all that is there; 0: unknown."""
        if self.peak_frame_bytes is None:
            return 0
        return self.base_bytes + round(self.peak_frame_bytes * frames)


def read_calibration(folder: Path) -> Calibration:
    """From the memory log of a run; its first step, which also warms up, is left out.

    Raises:
      UsageError: There is none, or its run was too short or had no encoder to see.
    """
    with reading("--from-run", folder):
        try:
            path = find_memory_logs(folder)[0]
        except UsageError as error:
            raise UsageError(f"--from-run: {error}") from error
        rows = read_last_run(path)
    phases = {(row["step"], row["phase"]): row for row in rows if row["row"] == "phase"}
    encoders = {row["step"]: row for row in rows if row.get("phase") == ENCODER}
    settled = [
        step
        for step in sorted(encoders)
        if {(step, COMPUTE_LOSS), (step, BACKWARD_UPDATE), (step - 1, BACKWARD_UPDATE)}
        <= phases.keys()
        and phases[step, COMPUTE_LOSS].get("frames")
    ]
    if not settled:
        raise UsageError(
            f"--from-run: {path} has no step whose encoder, frames and predecessor were measured, "
            "expected at least two whole steps; run it with --panda-max-batches 20"
        )
    left = {step: _current(phases[step - 1, BACKWARD_UPDATE]) for step in settled}
    base = round(statistics.median(left.values()))
    frames = {step: int(phases[step, COMPUTE_LOSS]["frames"]) for step in settled}
    kept = {step: _current(encoders[step]) - left[step] for step in settled}
    peaks = {
        step: max(_peak(phases[step, name]) for name in (COMPUTE_LOSS, BACKWARD_UPDATE))
        for step in settled
    }
    header = next((row for row in rows if row["row"] == "header"), {})
    options = header.get("options") or {}
    is_routed = bool(options.get("use_panda"))
    # Sizes that the recipe has no option for.
    params = (options.get("recipe_params") or {}).items()
    sizes = [word for n, value in params for word in (f"--{n.replace('_', '-')}", str(value))]
    rates = [(peaks[step] - base) / frames[step] for step in settled]
    return Calibration(
        path=path,
        base_bytes=base,
        frame_bytes=_most([kept[step] / frames[step] for step in settled]),
        peak_frame_bytes=_most(rates) if is_routed else None,
        peaks=[(frames[step], peaks[step]) for step in settled],
        kind="CUDA allocated" if "allocated_bytes" in encoders[settled[0]] else "process RSS",
        words=(*map(str, header.get("argv") or ()), *sizes),
    )


def _most(rates: list[float]) -> float:
    """The rate that is enough for most steps."""
    ascending = sorted(max(0.0, rate) for rate in rates)
    return ascending[min(len(ascending) - 1, int(_SHARE * len(ascending)))]


def _current(row: dict[str, Any]) -> int:
    return int(row["allocated_bytes"] if "allocated_bytes" in row else row["rss_bytes"])


def _peak(row: dict[str, Any]) -> int:
    return int(row["peak_bytes"] if "peak_bytes" in row else row["peak_rss_bytes"])
