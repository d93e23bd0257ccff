"""The batches that a recipe's sampler makes of a manifest, by their sizes alone."""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.planning.loss_memory import Batch

__all__ = ["Speech", "epoch_of_batches", "read_durations", "typical_batch"]


@dataclass(frozen=True)
class Speech:
    """How seconds become frames and symbols.

    Attributes:
      frame_rate: Frames after subsampling, in a second.
      symbol_rate: Symbols in a second.
    """

    frame_rate: float
    symbol_rate: float

    def batch(self, utterances: int, longest: float) -> Batch:
        """Utterances padded to the longest of them, in seconds."""
        T = max(1, round(longest * self.frame_rate))
        return Batch(utterances, T, max(1, min(T, round(longest * self.symbol_rate))))


def typical_batch(max_duration: float, utterance: float, speech: Speech) -> Batch:
    """What ``--max-duration`` admits of utterances of one length, both in seconds."""
    return speech.batch(max(1, int(max_duration / utterance)), utterance)


def read_durations(path: Path, shortest: float, longest: float) -> list[float]:
    """Seconds of the cuts of a manifest, those that the recipe does not leave out.

    Args:
      path: lhotse's ``*.jsonl`` or ``*.jsonl.gz``.
      shortest, longest: Bounds of an utterance, in seconds; others are left out.

    Raises:
      UsageError: It cannot be read, or nothing remains.
    """
    durations: list[float] = []
    total = 0
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for line in lines:
                total += 1
                duration = float(json.loads(line)["duration"])
                if shortest <= duration <= longest:
                    durations.append(duration)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--cuts: cannot read {path}: {type(error).__name__}: {error}; expected lhotse's cuts, "
            "*.jsonl.gz"
        ) from error
    if not durations:
        raise UsageError(
            f"--cuts: {path} has {total} cuts, none of {shortest:g} to {longest:g} s; expected "
            "some, or other bounds (--shortest, --longest)"
        )
    return durations


def epoch_of_batches(
    durations: Sequence[float], max_duration: float, buckets: int, seed: int = 0
) -> Iterator[tuple[int, float]]:
    """Batches of one epoch as lhotse's ``DynamicBucketingSampler`` makes them.

    Buckets hold equal shares of the speech. A batch is drawn from one of them, and ends when one
    more utterance like its longest would be too much: so the last one may be longer than all others
    and lift the padded sum above ``max_duration``. icefall's scan for the largest batches adds up
    the cuts themselves and does not see that.

    Args:
      durations: Seconds of the utterances.
      max_duration: ``--max-duration``, seconds.
      buckets: ``--num-buckets``.
      seed: Of the order within a bucket, which is another one in each epoch.

    Yields:
      The number of utterances, and the longest in seconds.
    """
    generator = random.Random(seed)
    for bucket in _buckets(sorted(durations), buckets):
        generator.shuffle(bucket)
        count, longest = 0, 0.0
        for duration in bucket:
            count, longest = count + 1, max(longest, duration)
            if (count + 1) * longest > max_duration:
                yield count, longest
                count, longest = 0, 0.0
        if count:
            yield count, longest


def _buckets(ascending: Sequence[float], buckets: int) -> Iterator[list[float]]:
    share = sum(ascending) / max(1, buckets)
    bucket: list[float] = []
    held = 0.0
    for duration in ascending:
        if held > share:
            yield bucket
            bucket, held = [], 0.0
        bucket.append(duration)
        held += duration
    if bucket:
        yield bucket
