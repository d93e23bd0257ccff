"""What a plan is made for: the command line, then the recipe's own defaults, then common values."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.planning.batches import Speech, read_durations, shuffled_buckets
from panda_icefall.runs.planning.calibration import read_calibration
from panda_icefall.runs.planning.loss_memory import LossSizes
from panda_icefall.runs.planning.plan import PlanInputs
from panda_icefall.runs.planning.recipe_sizes import Found, given_sizes, recipe_defaults

__all__ = ["gather_inputs", "parse_memory"]

# Where neither the command line nor a recipe says anything; icefall's own habits.
_COMMON: dict[str, Any] = {
    "joiner-dim": 512,
    "encoder-dim": 512,
    "decoder-dim": 512,
    "prune-range": 5,
    "dtype": "fp32",
    "frame-rate": 25.0,
    "symbol-rate": 4.0,
    "max-duration": 200.0,
    "utterance": 8.0,
    "num-buckets": 30,
}
_UNITS = {"": 2**30, "g": 2**30, "gib": 2**30, "gb": 10**9, "m": 2**20, "mib": 2**20, "mb": 10**6}
_MEMORY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_memory(option: str, text: str) -> int:
    """Bytes of ``32GiB``, ``24GB``, ``900MiB``, or ``32``, which are GiB.

    Raises:
      UsageError: It is none of these.
    """
    found = _MEMORY.fullmatch(text)
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None or float(found[1]) <= 0:
        raise UsageError(f"{option}: got {text!r}, expected a size like 32GiB, 24GB or 900MiB")
    return round(float(found[1]) * unit)


def gather_inputs(
    recipe: Path | None,
    given: Mapping[str, Any],
    *,
    gpu_mem: str,
    reserve: str,
    cuts: Path | None = None,
    shortest: float = 1.0,
    longest: float = 20.0,
    from_run: Path | None = None,
    on_percent: Callable[[int], object] = lambda percent: None,
) -> PlanInputs:
    """Everything a plan needs.

    Args:
      recipe: A recipe's folder or training script, for its defaults.
      given: Values from the command line by option, None where none was given.
      gpu_mem, reserve: Sizes as they are typed.
      cuts: A manifest of the training cuts.
      shortest, longest: Seconds; the recipe leaves out utterances beyond.
      from_run: A folder with a memory log of the same recipe, whose own options take the place of
        the recipe's defaults.
      on_percent: Told how much of ``cuts`` has been read.

    Raises:
      UsageError: Something is missing or wrong.
    """
    calibration = None if from_run is None else read_calibration(from_run)
    words = () if calibration is None else calibration.words
    read = given_sizes(words) if recipe is None else recipe_defaults(recipe, words)
    common = {name: Found(value, "default") for name, value in _COMMON.items()}
    typed = {n: Found(v, "command line") for n, v in given.items() if v is not None}
    found = {**common, **read, **typed}
    if "vocab" not in found:
        where = f", which {recipe} does not tell; give it"
        if recipe is None:
            where = "; give it, or a RECIPE_DIR whose files tell it"
        raise UsageError(f"--vocab: got none, expected the number of classes{where}")
    value = {name: item.value for name, item in found.items()}
    gpu_bytes = parse_memory("--gpu-mem", gpu_mem)
    reserve_bytes = parse_memory("--reserve", reserve)
    if reserve_bytes >= gpu_bytes:
        raise UsageError(f"--reserve: got {reserve}, expected less than --gpu-mem ({gpu_mem})")
    return PlanInputs(
        gpu_bytes=gpu_bytes,
        reserve_bytes=reserve_bytes,
        sizes=LossSizes(
            C=value["vocab"],
            H=value["joiner-dim"],
            am_dim=value["encoder-dim"],
            lm_dim=value["decoder-dim"],
            s_range=value["prune-range"],
            half=value["dtype"] != "fp32",
        ),
        speech=Speech(value["frame-rate"], value["symbol-rate"]),
        max_duration=float(value["max-duration"]),
        utterance=value["utterance"],
        buckets=None
        if cuts is None
        else shuffled_buckets(
            read_durations(cuts, shortest, longest, on_percent), value["num-buckets"]
        ),
        calibration=calibration,
        sources={name: f"{item.value} ({item.source})" for name, item in sorted(found.items())},
    )
