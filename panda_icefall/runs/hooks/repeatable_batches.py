"""Training batches that a resumed run repeats as the uninterrupted one had them."""

import contextlib
import logging
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

from panda_icefall.runs.contract.training_copy import unwrap_model
from panda_icefall.runs.hooks.checkpoint_state import ModuleNumbers, reload_after_scan
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.recipe_calls import Epoch

__all__ = ["RepeatableBatches", "correct_skipped_batches", "seed_batch", "skips_batches"]

_SKIPPED = "cur_batch_idx"


class RepeatableBatches(Hook):
    """What ``--panda-batch-seed`` puts around a recipe's epochs and batches.

    With it a run that is resumed from the recipe's own ``checkpoint-N.pt`` goes on as the
    uninterrupted run did: same batches, same random numbers, same plain numbers on the modules. Two
    things stay with the recipe: what it does every so many batches of an epoch (``zipformer`` tells
    its modules the batch count at every tenth) must fall on the same batches, so N must be a
    multiple of that; and CUDA kernels that add in no fixed order repeat to rounding only.

    Args:
      seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._numbers: ModuleNumbers | None = None

    @contextlib.contextmanager
    def epoch(self, epoch: Epoch) -> Iterator[None]:
        """The first epoch may be a resumed one: its state is put back.

        Raises:
          UsageError: A scan went through the sampler, which cannot be restored, or what was kept
            beside the checkpoint is of another model.
        """
        params, loader = epoch.arguments.get("params"), epoch.arguments["train_dl"]
        is_first = self._numbers is None
        if self._numbers is None:
            _warn_of_what_is_not_repeated(epoch, loader)
            self._numbers = ModuleNumbers(unwrap_model(epoch.model), epoch.folder, epoch.rank)
            start_batch = getattr(params, "start_batch", None)
            if isinstance(start_batch, int) and start_batch > 0:
                reload_after_scan(epoch, start_batch, is_sampler_needed=not skips_batches(params))
                self._numbers.restore(start_batch)
        correct_skipped_batches(params, loader, is_first=is_first)
        yield

    def before_batch(self, epoch: Epoch) -> None:
        """Seed the generators with which the next batch is drawn and trained."""
        done = epoch.batch_idx_train
        seed_batch(self._seed, epoch.steps if done is None else done, epoch.rank)

    def after_batch(self, epoch: Epoch) -> None:
        """Keep the modules' numbers beside the checkpoint that the recipe has just saved."""
        assert self._numbers is not None, "after_batch() without epoch()"
        if epoch.saved_batches is not None:
            try:
                self._numbers.save(epoch.saved_batches)
            except OSError as error:  # a full disk ends no training
                logging.warning(
                    "panda: --panda-batch-seed: the module attributes of checkpoint-%d.pt could "
                    "not be saved; a run resumed from it will not repeat this one: %s",
                    epoch.saved_batches,
                    error,
                )


def seed_batch(seed: int, batches_done: int, rank: int = 0) -> None:
    """Seed Python's, torch's (CPU and CUDA) and, where it is loaded, numpy's global generator.

    Called before each batch is drawn, it makes the numbers that a recipe draws for this batch and
    its training step independent of all that was drawn before. icefall's checkpoints hold no
    generator states: without this, a run that is resumed within an epoch cannot repeat the one
    that was not interrupted.

    Args:
      seed: The run's seed.
      batches_done: Training batches before this one, over all runs that led here.
      rank: The process's rank: each draws numbers of its own.
    """
    # A string is hashed (SHA-512) into the whole state, so that neighbouring batches share nothing.
    random.seed(f"{seed} {rank} {batches_done}")
    torch_seed, numpy_seed = random.getrandbits(63), random.getrandbits(32)
    torch.manual_seed(torch_seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(numpy_seed)


def correct_skipped_batches(params: Any, loader: Any, *, is_first: bool) -> None:
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


def _warn_of_what_is_not_repeated(epoch: Epoch, loader: Any) -> None:
    workers = getattr(loader, "num_workers", 0)
    if isinstance(workers, int) and workers > 0:
        logging.warning(
            "panda: --panda-batch-seed reaches this process only: got a training data loader with "
            "num_workers=%d, whose processes draw random numbers (augmentation) from their own "
            "states and prefetch batches: the sampler in a checkpoint is ahead of the trained "
            "batches, and a resumed run skips those in between. Pass --num-workers 0 to repeat "
            "both",
            workers,
        )
    if epoch.batch_idx_train is None:
        logging.warning(
            "panda: --panda-batch-seed: the recipe keeps no params.batch_idx_train: batches are "
            "counted and seeded from 0 in every process, and nothing is saved beside its "
            "checkpoints. A resumed run will not repeat the uninterrupted one; let the recipe "
            "count its batches"
        )
