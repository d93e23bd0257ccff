"""Training batches that a resumed run repeats as the uninterrupted one had them."""

from typing import Optional

from panda_icefall.runs.batch_seed import (
    seed_batch,
    warn_of_missing_count,
    warn_of_workers,
)
from panda_icefall.runs.contract.training_copy import unwrap_model
from panda_icefall.runs.module_numbers import ModuleNumbers
from panda_icefall.runs.recipe_calls import Epoch
from panda_icefall.runs.resumption import align_resumed_epoch
from panda_icefall.runs.used_up_state import reload_used_up_state

__all__ = ["RepeatableBatches"]


class RepeatableBatches:
    """What ``--panda-batch-seed`` puts around a recipe's epochs and batches.

    With it a run that is resumed from the recipe's own ``checkpoint-N.pt`` goes on as the
    uninterrupted run did: same batches, same random numbers, same memory of the modules. Two
    things stay with the recipe: what it does every so many batches of an epoch (``zipformer`` tells
    its modules the batch count at every tenth) must fall on the same batches, so N must be a
    multiple of that; and CUDA kernels that add in no fixed order repeat to rounding only.

    Args:
      seed: The run's seed.
      rank: The process's rank.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self._seed = seed
        self._rank = rank
        self._numbers: Optional[ModuleNumbers] = None

    def begin_epoch(self, epoch: Epoch) -> None:
        """Called before the recipe's ``train_one_epoch``; the first one may be a resumed one.

        Raises:
          UsageError: The sampler's state was used up and cannot be restored, or what was kept
            beside the checkpoint is of another model.
        """
        params, loader = epoch.arguments.get("params"), epoch.arguments["train_dl"]
        if self._numbers is not None:
            align_resumed_epoch(params, loader, is_first=False)
            return
        warn_of_workers(loader)
        if epoch.batch_idx_train is None:
            warn_of_missing_count()
        model = unwrap_model(epoch.arguments["model"])
        self._numbers = ModuleNumbers(model, epoch.folder, self._rank)
        start_batch = getattr(params, "start_batch", None)
        if isinstance(start_batch, int) and start_batch > 0:
            reload_used_up_state(epoch, start_batch)
            self._numbers.restore(start_batch)
        align_resumed_epoch(params, loader, is_first=True)

    def before_batch(self, epoch: Epoch, steps: int) -> None:
        """Called before each batch is drawn, after ``steps`` training steps of this process."""
        done = epoch.batch_idx_train
        seed_batch(self._seed, steps if done is None else done, self._rank)

    def after_batch(self, epoch: Epoch) -> None:
        """Called when the recipe is through with a batch, its checkpoint included."""
        assert self._numbers is not None, "after_batch() without begin_epoch()"
        if epoch.saved_batches is not None:
            self._numbers.save(epoch.saved_batches)
