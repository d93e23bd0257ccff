"""The batches that a recipe's sampler makes of a manifest, by their sizes alone."""

import gzip
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from panda_icefall.runs.errors import UsageError
from panda_icefall.runs.planning.loss_memory import Batch

__all__ = [
    "Speech",
    "epoch_of_batches",
    "read_durations",
    "shuffled_buckets",
    "typical_batch",
]


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


_LINES = 4096  # read between two words on how far it is


def read_durations(
    path: Path,
    shortest: float,
    longest: float,
    on_percent: Callable[[int], object] = lambda percent: None,
) -> list[float]:
    """Seconds of the cuts of a manifest, those that the recipe does not leave out.

    Args:
      path: lhotse's ``*.jsonl`` or ``*.jsonl.gz``.
      shortest, longest: Bounds of an utterance, in seconds; others are left out.
      on_percent: Told how much of the file has been read.

    Raises:
      UsageError: It cannot be read, or nothing remains.
    """
    durations: list[float] = []
    total = 0
    try:
        whole = max(1, path.stat().st_size)
        with path.open("rb") as file:
            packed = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            for line in io.TextIOWrapper(packed, encoding="utf-8"):  # type: ignore[arg-type]
                total += 1
                if total % _LINES == 0:
                    on_percent(100 * file.tell() // whole)
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


def shuffled_buckets(durations: Sequence[float], count: int, seed: int = 0) -> list[list[float]]:
    """Utterances by length, each bucket with an equal share of the speech, in random order.

    Args:
      durations: Seconds of the utterances.
      count: ``--num-buckets``.
      seed: Of the order within a bucket, which is another one in each epoch.
    """
    share = sum(durations) / max(1, count)
    buckets: list[list[float]] = [[]]
    held = 0.0
    for duration in sorted(durations):
        if held > share:
            buckets.append([])
            held = 0.0
        buckets[-1].append(duration)
        held += duration
    generator = random.Random(seed)
    for bucket in buckets:
        generator.shuffle(bucket)
    return buckets


def epoch_of_batches(
    buckets: Sequence[Sequence[float]], max_duration: float
) -> Iterator[tuple[int, float]]:
    """Batches of one epoch as lhotse's ``DynamicBucketingSampler`` makes them.

    A batch is drawn from one bucket, and ends when one more utterance like its longest would be too
    much: so the last one may be longer than all others and lift the padded sum above
    ``max_duration``. icefall's scan for the largest batches adds up the cuts themselves and does
    not see that.

    Args:
      buckets: Seconds of the utterances, from :func:`shuffled_buckets`.
      max_duration: ``--max-duration``, seconds.

    Yields:
      The number of utterances, and the longest in seconds.
    """
    for bucket in buckets:
        count, longest = 0, 0.0
        for duration in bucket:
            count += 1
            if duration > longest:
                longest = duration
            if (count + 1) * longest > max_duration:
                yield count, longest
                count, longest = 0, 0.0
        if count:
            yield count, longest
