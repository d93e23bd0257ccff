"""The batches of an epoch that need most memory, trained on in place of the epoch.

icefall's ``scan_pessimistic_batches_for_oom`` runs a forward and backward of the batches that
lhotse's ``find_pessimistic_batches`` names: those with the longest cut, the most seconds, the most
cuts. It misses three things. It adds up the cuts themselves, while one long cut pads all others of
its batch; it does not look at transcripts, which decide how large the lattice is; and it runs
before the optimizer has its state.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from panda_icefall.memory_limit import cap_memory, status_bytes
from panda_icefall.runs.atomic_file import replace_json
from panda_icefall.runs.errors import BoundReached, UsageError
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.options import WorstOnly
from panda_icefall.runs.recipe_calls import BatchFeed, Epoch, FirstBatchOnly
from panda_icefall.runs.records import Record

__all__ = ["BatchSize", "Scan", "WorstBatches", "find_worst"]


class BatchSize(Record):
    """How large a batch is.

    Attributes:
      cuts: B.
      longest_seconds: Of one cut: what all of them are padded to.
      seconds: Of all of them, without padding.
      transcript: Characters of the longest transcript, which stand for its symbols.
      worst_by: The measures by which no batch of the epoch is larger.
    """

    cuts: int
    longest_seconds: float
    seconds: float
    transcript: int
    worst_by: list[str] = Field(default_factory=list)

    @property
    def padded_seconds(self) -> float:
        """Seconds with padding."""
        return self.cuts * self.longest_seconds


class Scan(Record):
    """What was found in an epoch.

    Attributes:
      batches: How many batches were looked at.
      worst: The largest of them.
      available_bytes: What the process may hold: of CUDA's allocator, or its resident set; None:
        unknown.
    """

    batches: int
    worst: list[BatchSize]
    available_bytes: int | None = None


class WorstBatches(Hook):
    """Has the recipe train on the worst batches of its own sampler, then ends the run.

    The first of them is trained on twice: the second time with the optimizer's state in memory.
    Nothing is validated but one batch, where the recipe validates within its epoch.

    Args:
      asked: Where the report goes, how much is looked at, and the limit.
    """

    def __init__(self, asked: WorstOnly) -> None:
        self._asked = asked
        self._to_train = 0
        self._drawn = 0

    @contextlib.contextmanager
    def epoch(self, epoch: Epoch) -> Iterator[None]:
        """The first epoch: find the batches, then set the limit.

        Raises:
          BoundReached: The sampler makes no batch.
          UsageError: The recipe's data loader has no sampler of lhotse's, or the limit cannot be
            set.
        """
        arguments = epoch.arguments
        loader = arguments["train_dl"]
        scan, batches = find_worst(_sampled(loader).sampler, self._asked.scan_batches)
        # Ranks must train on equally many, so there one batch may come several times.
        if not _is_one_of_several():
            batches = list({id(batch): batch for batch in batches}.values())
        batches += batches[:1]
        logging.info("panda: the worst of %d batches: %s", scan.batches, scan.worst)
        if self._asked.limit_bytes is not None:
            try:
                cap_memory(self._asked.limit_bytes, epoch.device)
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                raise UsageError(f"--limit-mib: cannot be set here: {error}") from error
        if epoch.rank == 0:
            scan.available_bytes = _available(epoch.device, self._asked.limit_bytes)
            replace_json(Path(self._asked.report), scan.model_dump())
        if not batches:
            raise BoundReached
        self._to_train = len(batches)
        arguments["train_dl"] = _Chosen(loader, batches)
        if "valid_dl" in arguments:
            arguments["valid_dl"] = FirstBatchOnly(arguments["valid_dl"])
        yield

    def before_batch(self, epoch: Epoch) -> None:
        """End the run where all have been trained on.

        Raises:
          BoundReached: They have.
        """
        if self._drawn == self._to_train:
            raise BoundReached
        self._drawn += 1


class _Chosen(BatchFeed):
    """Stands for a data loader of which some batches are asked for.

    Args:
      loader: The recipe's data loader.
      batches: What its sampler gave for them.
    """

    def __init__(self, loader: Any, batches: list[Any]) -> None:
        super().__init__(loader, lambda: True)
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        dataset = _sampled(self._loader).dataset
        for batch in self._batches:
            yield dataset[batch]


def _sampled(loader: Any) -> Any:
    """What has the dataset and lhotse's sampler: the loader, or its iterable dataset.

    Raises:
      UsageError: Neither has.
    """
    for found in (loader, getattr(loader, "dataset", None)):
        sampler = getattr(found, "sampler", None)
        if hasattr(sampler, "state_dict"):  # lhotse's have one, torch's do not
            return found
    raise UsageError(
        f"TRAIN_PY: its train_dl is a {type(loader).__name__} with the sampler "
        f"{type(getattr(loader, 'sampler', None)).__name__}, expected a sampler of lhotse's, of "
        "which the worst batches could be asked; measure a run of it instead (--panda-memory-log, "
        "then panda-icefall plan --from-run)"
    )


def _available(device: torch.device, limit_bytes: int | None) -> int | None:
    """What this process may hold: what is left of the device, and no more than the limit."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return free if limit_bytes is None else min(free, limit_bytes)
    return None if limit_bytes is None else status_bytes("VmRSS") + limit_bytes


def _is_one_of_several() -> bool:
    distributed = torch.distributed
    is_joined = distributed.is_available() and distributed.is_initialized()
    return is_joined and distributed.get_world_size() > 1


def find_worst(sampler: Any, most: int | None = None) -> tuple[Scan, list[Any]]:
    """Go through a sampler's epoch and keep the largest batch by each measure.

    Args:
      sampler: lhotse's: an iterable of batches of cuts, or of tuples that begin with them.
      most: Batches to look at; None: all of them.

    Raises:
      UsageError: Its batches are none of cuts.

    Returns:
      What was found; and a batch, as the sampler gave it, for each measure, the first being the one
      with most seconds after padding. One batch may be several of them.
    """
    largest: dict[str, tuple[float, int]] = {}
    kept: dict[int, tuple[Any, BatchSize]] = {}
    seen = 0
    for batch in sampler:
        size, measures = _measure(batch[0] if isinstance(batch, tuple) else batch)
        larger = [n for n, value in measures.items() if n not in largest or value > largest[n][0]]
        if larger:
            largest |= {name: (measures[name], seen) for name in larger}
            kept[seen] = (batch, size)
            in_use = {number for _, number in largest.values()}
            kept = {number: kept[number] for number in in_use}
        seen += 1
        if seen == most:
            break
    for name, (_, number) in largest.items():
        kept[number][1].worst_by.append(name)
    numbers = dict.fromkeys(number for _, number in largest.values())
    worst = [kept[number][1] for number in numbers]
    return Scan(batches=seen, worst=worst), [kept[number][0] for _, number in largest.values()]


def _measure(cuts: Any) -> tuple[BatchSize, dict[str, float]]:
    """A batch's size, and all by which a batch may be the worst."""
    durations, supervised, transcripts, supervisions = [], [], [], 0
    for cut in cuts:
        if not hasattr(cut, "supervisions"):
            raise UsageError(
                f"TRAIN_PY: a batch of its sampler has a {type(cut).__name__}, expected lhotse's "
                "cuts; measure a run of it instead (--panda-memory-log, then panda-icefall plan "
                "--from-run)"
            )
        durations.append(float(cut.duration))
        supervised.append(sum(float(s.duration) for s in cut.supervisions))
        transcripts.append(sum(len(s.text or "") for s in cut.supervisions))
        supervisions += len(cut.supervisions)
    B, longest, S = len(durations), max(durations), max(transcripts)
    seconds = sum(durations)
    size = BatchSize(cuts=B, longest_seconds=longest, seconds=seconds, transcript=S)
    return size, {
        "seconds with padding": B * longest,
        "lattice sites": B * longest * (S + 1),
        "predictor states": B * (S + 1),
        "longest transcript": S,
        "padding": B * longest - seconds,
        # Those of lhotse's find_pessimistic_batches, which icefall's scan runs.
        "longest cut": longest,
        "longest supervision": max(supervised),
        "seconds": seconds,
        "supervised seconds": sum(supervised),
        "cuts": B,
        "supervisions": supervisions,
    }
