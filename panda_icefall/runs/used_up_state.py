"""A resumed run's state that its own scan for large batches has used up, loaded once more.

Most icefall recipes look for the batches that need the most memory ahead of their first epoch,
resumed runs too: lhotse's sampler, restored from the checkpoint, is iterated to its end and would
start the epoch over; some recipes take optimizer steps on these batches as well.
"""

import logging
from typing import Any

import torch

from panda_icefall.runs.contract.training_copy import unwrap_model
from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.recipe_calls import Epoch
from panda_icefall.runs.resumption import skips_batches

__all__ = ["reload_used_up_state"]


def reload_used_up_state(epoch: Epoch, batches: int) -> None:
    """Load sampler, model and optimizer from the recipe's checkpoint where a scan used them up.

    Nothing is done where the sampler still stands behind the checkpoint's last batch, or is none
    of lhotse's.

    Args:
      epoch: The first epoch of a resumed run.
      batches: Its ``--start-batch``.

    Raises:
      UsageError: The checkpoint is missing, the sampler cannot be restored from it, or the recipe
        has gone to another epoch; also where it holds no sampler, unless the recipe skips the
        batches that were trained.
    """
    sampler = getattr(epoch.arguments["train_dl"], "sampler", None)
    # Set by load_state_dict() of lhotse's samplers until the first batch is drawn.
    if getattr(sampler, "_just_restored_state", True):
        return
    path = epoch.folder / f"checkpoint-{batches}.pt"
    asked = f"--panda-batch-seed: --start-batch {batches}"
    happened = "the sampler of the training data stands at the start of its epoch"
    if not path.is_file():
        raise UsageError(f"{asked}: {happened}, and {path} does not exist; restore that file")
    # The recipe has unpickled the same file just before.
    state = torch.load(path, map_location="cpu", weights_only=False)
    if "sampler" in state:
        _restore_sampler(sampler, state["sampler"], f"{asked}: {path}")
    elif not skips_batches(epoch.arguments.get("params")):
        raise UsageError(
            f"{asked}: {happened}, and {path} holds no sampler to restore it from; resume from the "
            "end of an epoch (--start-epoch), or without --panda-batch-seed"
        )
    unwrap_model(epoch.arguments["model"]).load_state_dict(state["model"])
    optimizer = epoch.arguments.get("optimizer")
    if optimizer is not None and state.get("optimizer") is not None:
        optimizer.load_state_dict(state["optimizer"])
    logging.info(
        "panda: %s: the recipe has gone through its training data ahead of the first epoch; "
        "sampler, model and optimizer were loaded once more from %s",
        asked,
        path.name,
    )


def _restore_sampler(sampler: Any, state: dict[str, Any], what: str) -> None:
    epoch = sampler.epoch
    saved_epoch = state.get("epoch")
    if saved_epoch != epoch:
        raise UsageError(
            f"{what}: got a sampler saved in epoch {saved_epoch} (counted from 0), expected the "
            f"epoch {epoch} in which the recipe resumes; resume in the epoch of the checkpoint"
        )
    try:
        sampler.load_state_dict(state)
    except (AssertionError, AttributeError, KeyError, StopIteration, TypeError) as error:
        raise UsageError(
            f"{what}: the sampler does not take its state: {error!r}; resume with the data, "
            "processes and lhotse that the checkpoint was saved with"
        ) from error
