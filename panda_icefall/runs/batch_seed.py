"""Random numbers of a training batch that depend on the batch alone, not on the run so far."""

import logging
import random
import sys
from typing import Any

import torch

__all__ = ["seed_batch", "warn_of_missing_count", "warn_of_workers"]


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


def warn_of_missing_count() -> None:
    """Say that a recipe keeps no count of training batches to seed and save by."""
    logging.warning(
        "panda: --panda-batch-seed: the recipe keeps no params.batch_idx_train: batches are "
        "counted and seeded from 0 in every process, and nothing is saved beside its checkpoints. "
        "A resumed run will not repeat the uninterrupted one; let the recipe count its batches"
    )


def warn_of_workers(loader: Any) -> None:
    """Say that batches made in other processes, and ahead of time, are out of the seed's reach."""
    workers = getattr(loader, "num_workers", 0)
    if isinstance(workers, int) and workers > 0:
        logging.warning(
            "panda: --panda-batch-seed reaches this process only: got a training data loader with "
            "num_workers=%d, whose processes draw their random numbers (augmentation) from "
            "states of their own and whose batches are drawn from the sampler ahead of time: the "
            "sampler in a checkpoint has passed batches that were not trained yet, and a resumed "
            "run leaves them out. Pass --num-workers 0 to repeat both",
            workers,
        )
