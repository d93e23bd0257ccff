"""What is kept of a batch in which something went wrong: the batch, and a report that names it."""

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panda_icefall.runs.atomic_file import finite_json, replace_json
from panda_icefall.runs.memory.log import rank_path
from panda_icefall.runs.recipe_calls import Epoch

__all__ = ["report_path", "save_batch", "utterance_of", "write_report"]


def report_path(memory_log: Path | None, epoch: Epoch, what: str) -> Path:
    """Where a report on ``what`` goes: beside the memory log, else into the recipe's folder."""
    if memory_log is None:
        return rank_path(epoch.folder / f"panda-{what}.json", epoch.rank)
    return rank_path(memory_log.with_name(f"{memory_log.stem}.{what}.json"), epoch.rank)


def save_batch(batch: Any, folder: Path) -> tuple[Path | None, str | None]:
    """Save a batch as icefall does where a step raises: ``batch-<uuid>.pt`` in its ``exp_dir``.

    Returns:
      The file, or None and why it is not there: training goes on as it would have.
    """
    path = folder / f"batch-{uuid.uuid4()}.pt"
    partial = path.with_name(f".{path.name}.partial")
    try:
        torch.save(batch, partial)
        os.replace(partial, path)
    except Exception as error:  # a full disk, a folder that is read-only, a batch of other things
        with contextlib.suppress(OSError):
            partial.unlink()
        logging.warning("panda: the batch could not be saved to %s: %s", path, error)
        return None, str(error)
    return path, None


def write_report(path: Path, epoch: Epoch, batch: Any, **content: Any) -> None:
    """Save the batch, and write where it is and ``content`` to a JSON file, in place of another.

    Where the file cannot be written the log gets the report itself.
    """
    saved, why_not = save_batch(batch, epoch.folder)
    report = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "rank": epoch.rank,
        "step": epoch.steps,
        "batch_idx_train": epoch.batch_idx_train,
        **content,
        "batch": None if saved is None else str(saved.absolute()),
        "batch_error": why_not,
    }
    try:
        replace_json(path, report)
    except OSError as error:
        text = json.dumps(finite_json(report), ensure_ascii=False)
        logging.warning("panda: %s could not be written (%s): %s", path, error, text)


def utterance_of(batch: Any, b: int, utterances: int) -> dict[str, Any]:
    """What a batch says of its utterance ``b``: cut id or text, and whether its features are good.

    Args:
      batch: As of lhotse's ``K2SpeechRecognitionDataset``; of others nothing is said.
      b: Its place in the loss.
      utterances: Of the loss, B. Some recipes train on two copies of each batch, one behind the
        other.
    """
    supervisions = batch.get("supervisions") if isinstance(batch, Mapping) else None
    if not isinstance(supervisions, Mapping):
        return {}
    found: dict[str, Any] = {}
    for key, name in (("cut", "cut"), ("text", "text")):
        values = supervisions.get(key)
        if isinstance(values, (list, tuple)) and values and utterances % len(values) == 0:
            value = values[b % len(values)]
            found[name] = str(getattr(value, "id", value))
    features = batch.get("inputs")
    if isinstance(features, Tensor) and features.dim() and utterances % len(features) == 0:
        found["features_are_finite"] = bool(features[b % len(features)].isfinite().all())
    return found
