"""An epoch that a recipe resumes in its middle: the batches that are left, each of them once."""

import logging
from typing import Any

__all__ = ["align_resumed_epoch", "skips_batches"]

_SKIPPED = "cur_batch_idx"


def align_resumed_epoch(params: Any, loader: Any, *, is_first: bool) -> None:
    """Correct how many batches a recipe is about to skip at the start of an epoch.

    Some icefall recipes save the index of the last trained batch of the epoch as
    ``cur_batch_idx``, and a resumed run leaves out the batches before it; they also restore
    lhotse's sampler. Both together leave out twice as many batches as were trained. Without the
    restored sampler (not every checkpoint holds one) the last trained batch is trained again; and
    where no further checkpoint is saved, the next epoch leaves batches out too.

    Args:
      params: The recipe's parameters; without ``cur_batch_idx`` nothing is done.
      loader: The recipe's training data loader.
      is_first: Whether this is the first epoch of this process.
    """
    if not skips_batches(params):
        return
    last_trained = getattr(params, _SKIPPED)
    # Set by load_state_dict() of lhotse's samplers until the first batch is drawn.
    is_restored = getattr(getattr(loader, "sampler", None), "_just_restored_state", False)
    to_skip = 0 if is_restored or not is_first else last_trained + 1
    if to_skip != last_trained:
        setattr(params, _SKIPPED, to_skip)
        logging.info(
            "panda: --panda-batch-seed resumes with the batch after the last trained one: "
            "the recipe now skips %d batches of this epoch instead of %d",
            to_skip,
            last_trained,
        )


def skips_batches(params: Any) -> bool:
    """Whether a recipe with these parameters leaves out the batches that were trained already."""
    last_trained = getattr(params, _SKIPPED, None)
    return isinstance(last_trained, int) and not isinstance(last_trained, bool)
