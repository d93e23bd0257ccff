"""Cuts, samplers and data loaders of the tones corpus."""

from __future__ import annotations

import argparse
from pathlib import Path

from lhotse import CutSet, load_manifest_lazy
from lhotse.dataset import (
    DynamicBucketingSampler,
    K2SpeechRecognitionDataset,
    SimpleCutSampler,
)
from torch.utils.data import DataLoader


class TonesAsrDataModule:
    """Makes the data loaders from the command line's arguments.

    A batch is a dict: `inputs` [B, T_in, F] float32 log-mel features and `supervisions`, a dict
    with `text` (a list of B strings) and `num_frames` [B].
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the group of data options to `parser`."""
        group = parser.add_argument_group(title="ASR data related options")
        group.add_argument(
            "--data-dir", type=str, default="data", help="The folder that prepare.py wrote."
        )
        group.add_argument(
            "--max-duration", type=float, default=30.0, help="Seconds of audio in a batch."
        )
        group.add_argument("--num-buckets", type=int, default=8, help="Buckets of like length.")
        group.add_argument(
            "--num-workers", type=int, default=0, help="Processes that load; 0 loads in this one."
        )

    def cuts(self, split: str) -> CutSet:
        """The cuts of `train`, `dev` or `test`.

        Raises:
          FileNotFoundError: prepare.py has not been run there, or not to its end.
        """
        data_dir = Path(self.args.data_dir)
        path = data_dir / "fbank" / f"tones_cuts_{split}.jsonl.gz"
        if not path.is_file() or not (data_dir / ".corpus_complete.json").is_file():
            raise FileNotFoundError(
                f"data_dir: got {data_dir}, expected a folder finished by prepare.py; "
                f"run prepare.py --data-dir {data_dir}"
            )
        return load_manifest_lazy(path)

    def train_dataloader(
        self, cuts: CutSet, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader:
        """Shuffled batches of like length; each rank gets its own, equally many."""
        sampler = DynamicBucketingSampler(
            cuts,
            max_duration=self.args.max_duration,
            num_buckets=self.args.num_buckets,
            shuffle=True,
            drop_last=False,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        return self._dataloader(sampler)

    def valid_dataloader(self, cuts: CutSet, rank: int = 0, world_size: int = 1) -> DataLoader:
        """Batches in the order of the manifest, for validation and decoding."""
        sampler = SimpleCutSampler(
            cuts,
            max_duration=self.args.max_duration,
            shuffle=False,
            rank=rank,
            world_size=world_size,
        )
        return self._dataloader(sampler)

    def _dataloader(self, sampler: DynamicBucketingSampler | SimpleCutSampler) -> DataLoader:
        # batch_size=None: the sampler already yields whole batches of cuts.
        return DataLoader(
            K2SpeechRecognitionDataset(),
            sampler=sampler,
            batch_size=None,
            num_workers=self.args.num_workers,
        )
