"""One plan: what the losses need, how long a batch may be, and what to set."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from panda_icefall.normalizer.workspace import CUDA_BOUNDS, CUDA_SHARE, MIB
from panda_icefall.runs.planning.batches import Speech, epoch_of_batches, typical_batch
from panda_icefall.runs.planning.calibration import Calibration
from panda_icefall.runs.planning.loss_memory import (
    MEASURED_ERROR,
    Batch,
    Components,
    LossSizes,
    dense_memory,
    routed_memory,
)

__all__ = [
    "ARMS",
    "LONGEST",
    "MOST_EPOCHS",
    "Plan",
    "PlanInputs",
    "capacity_against_classes",
    "make_plan",
]

ARMS = ("dense", "routed")
LONGEST = 20_000  # seconds of audio: none above is tried
_STEP = 5  # max-duration is said in whole steps of so many seconds
# Epochs of batches that a plan goes through: one for its table and those of a bisection, each arm.
MOST_EPOCHS = len(ARMS) * (1 + (LONGEST // _STEP).bit_length())


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is made for.

    Attributes:
      gpu_bytes: Memory of the GPU.
      reserve_bytes: Of it, kept for CUDA itself and for what the allocator cannot use.
      sizes: Of the losses.
      speech: How seconds become frames and symbols.
      max_duration: Seconds of audio in a batch, for the table of components.
      utterance: Seconds of a typical utterance; not used where ``buckets`` are given.
      buckets: Seconds of all utterances, as the sampler's buckets hold them, or None.
      calibration: The step beside the losses, or None.
      sources: Where each number is from, in words.
    """

    gpu_bytes: int
    reserve_bytes: int
    sizes: LossSizes
    speech: Speech
    max_duration: float
    utterance: float
    buckets: Sequence[Sequence[float]] | None
    calibration: Calibration | None
    sources: dict[str, str]

    @property
    def utterances(self) -> int | None:
        """How many were looked at; None: none."""
        return None if self.buckets is None else sum(map(len, self.buckets))

    @property
    def usable_bytes(self) -> int:
        """What remains without the reserve."""
        return self.gpu_bytes - self.reserve_bytes

    @property
    def workspace_bytes(self) -> int:
        """The tile scratch that routing would choose on this GPU, at most."""
        return min(CUDA_BOUNDS[1], int(self.gpu_bytes * CUDA_SHARE))

    def memory(self, arm: str, batch: Batch) -> Components:
        """Bytes by component, the step beside the losses among them where it is known."""
        if arm == "dense":
            of_losses = dense_memory(batch, self.sizes)
        else:
            of_losses = routed_memory(batch, self.sizes, self.workspace_bytes)
        if self.calibration is None:
            return of_losses
        whole = {
            "parameters, optimizer state": self.calibration.base_bytes,
            "encoder, kept for backward": self.calibration.encoder_bytes(batch.frames),
            **of_losses,
        }
        # The step's peak may come later, when the losses are through.
        more = self.calibration.backward_bytes(batch.frames) - sum(whole.values())
        return {**whole, "encoder's backward, above all that": more} if more > 0 else whole

    def worst_batch(self, arm: str, max_duration: float) -> Batch:
        """The batch that needs most, of those that the sampler makes."""
        if self.buckets is None:
            return typical_batch(max_duration, self.utterance, self.speech)
        made = set(epoch_of_batches(self.buckets, max_duration))
        batches = [self.speech.batch(count, longest) for count, longest in made]
        return max(batches, key=lambda batch: sum(self.memory(arm, batch).values()))


@dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
      inputs: What for.
      batches: The worst batch of each arm at ``max_duration``.
      components: Its memory at the peak, bytes by component and arm.
      longest: The largest ``--max-duration`` of each arm, in seconds; 0: none, ``LONGEST``: or
        more.
    """

    inputs: PlanInputs
    batches: dict[str, Batch]
    components: dict[str, Components]
    longest: dict[str, int]

    def total(self, arm: str) -> int:
        """Bytes at the peak of the arm."""
        return sum(self.components[arm].values())

    @property
    def advice(self) -> str:
        """What to set, in a line."""
        dense, routed = (self.longest[arm] for arm in ARMS)
        if not routed:
            return "nothing fits: a smaller encoder, or a GPU with more memory, is needed"
        if dense >= LONGEST:
            more = "" if self.inputs.calibration is not None else "; see --from-run for the encoder"
            return (
                f"what you like: even dense fits at --max-duration {LONGEST:,}, the largest that "
                f"is tried{more}"
            )
        if routed <= dense * 1.1:
            # Without a run's encoder no --max-duration is known.
            longest = "" if self.inputs.calibration is None else f"--max-duration {dense}: "
            return f"{longest}the losses are a small part here, --use-panda 1 would change little"
        if self.inputs.calibration is None:
            dense_mib, routed_mib = (self.total(arm) / MIB for arm in ARMS)
            return (
                f"--use-panda 1: the losses then take {routed_mib:,.0f} MiB instead of "
                f"{dense_mib:,.0f} at this --max-duration; for the largest one that fits give "
                "--from-run"
            )
        gain = f", {routed / dense:.1f} times the dense one" if dense else ""
        return f"--use-panda 1 --max-duration {routed}{gain}"

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values, bytes throughout."""
        inputs = self.inputs
        calibration = None
        if inputs.calibration is not None:
            calibration = asdict(inputs.calibration)
            del calibration["words"]  # the log has them
            calibration["path"] = str(inputs.calibration.path)
        return {
            "gpu_bytes": inputs.gpu_bytes,
            "reserve_bytes": inputs.reserve_bytes,
            "workspace_bytes": inputs.workspace_bytes,
            "sizes": asdict(inputs.sizes),
            "sources": inputs.sources,
            "max_duration": inputs.max_duration,
            "utterances": inputs.utterances,
            "calibration": calibration,
            "batches": {arm: asdict(batch) for arm, batch in self.batches.items()},
            "components": self.components,
            "peak_bytes": {arm: self.total(arm) for arm in ARMS},
            "largest_max_duration": self.longest,
            "error": MEASURED_ERROR,
            "advice": self.advice,
        }


def make_plan(inputs: PlanInputs, on_epochs: Callable[[int], object] = lambda count: None) -> Plan:
    """Find the components at ``max_duration``, and the largest one that fits, dense and routed.

    Args:
      inputs: What for.
      on_epochs: Told how many epochs of batches, of ``MOST_EPOCHS``, have been gone through.

    Raises:
      ValueError: The memory is too small for a tile.
    """
    epochs = 0

    def worst_batch(arm: str, seconds: float) -> Batch:
        nonlocal epochs
        batch = inputs.worst_batch(arm, seconds)
        epochs += 1
        on_epochs(epochs)
        return batch

    batches = {arm: worst_batch(arm, inputs.max_duration) for arm in ARMS}

    def fits(arm: str) -> Callable[[float], bool]:
        def check(seconds: float) -> bool:
            batch = worst_batch(arm, seconds)
            return sum(inputs.memory(arm, batch).values()) <= inputs.usable_bytes

        return check

    return Plan(
        inputs,
        batches,
        {arm: inputs.memory(arm, batch) for arm, batch in batches.items()},
        {arm: _largest(fits(arm)) for arm in ARMS},
    )


def capacity_against_classes(inputs: PlanInputs, classes: Sequence[int]) -> dict[str, list[int]]:
    """The largest ``--max-duration`` of each arm, in seconds, for each number of classes."""
    plans = [make_plan(replace(inputs, sizes=replace(inputs.sizes, C=C))) for C in classes]
    return {arm: [plan.longest[arm] for plan in plans] for arm in ARMS}


def _largest(fits: Callable[[float], bool]) -> int:
    """Bisection for the largest max-duration that fits, in whole steps; 0: none."""
    low, high = 0, LONGEST // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * _STEP):
            low = middle
        else:
            high = middle - 1
    return low * _STEP
