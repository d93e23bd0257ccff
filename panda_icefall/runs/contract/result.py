"""What a contract check found, ``panda-check.json``, and which of it is a violation."""

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from panda_icefall.runs.atomic_file import replace_json
from panda_icefall.runs.contract.tolerances import Leeway, Tolerances
from panda_icefall.runs.memory.log import rank_path
from panda_icefall.runs.records import Bytes, Record, validated

__all__ = [
    "FILE_NAME",
    "ContractRecord",
    "Distance",
    "RangesComparison",
    "UpdateRecord",
    "backward_violations",
    "final_violations",
    "gradient_bounds",
    "read_contracts",
    "update_violations",
]

FILE_NAME = "panda-check.json"


class Distance(Record):
    """How far one group's tensors of the routed arm are from those of the dense arm.

    Attributes:
      group: Name of the parameter group, or of the pruned loss.
      max_abs: Largest absolute difference of one element.
      max_scaled: Largest ``|difference| / (1 + |dense|)`` of one element.
      rel_l2: Norm of the difference over the dense norm; 0 where both are zero.
      cosine: Cosine between both, 1 where both are zero.
      dense_norm: L2 norm of the dense arm's tensors.
      difference_norm: L2 norm of the difference.
      is_negligible: The dense norm is rounding noise of the whole model's, so ``rel_l2`` and
        ``cosine`` mean nothing and the difference is judged in absolute terms.
    """

    group: str
    max_abs: float = math.nan
    max_scaled: float = math.nan
    rel_l2: float
    cosine: float
    dense_norm: float = math.nan
    difference_norm: float = math.nan
    is_negligible: bool = False


class RangesComparison(Record):
    """How often a pass would have chosen other prune ranges than those it was handed.

    Attributes:
      frames: Frames inside the boundary.
      frames_differing: Those of them whose own ranges differ in any place.
      problems: Why ranges of the dense pass could not be handed on, in words.
    """

    frames: int = 0
    frames_differing: int = 0
    problems: list[str] = Field(default_factory=list)


class UpdateRecord(Record):
    """What one batch of a contract check showed; peaks are bytes above the arm's start.

    Attributes:
      update: Number of the batch, from 1.
      loss_dense: Loss of the dense arm.
      loss_routed: Loss of the routed arm at the same parameters.
      pruned_losses: Distances of the pruned losses' own values, ahead of the recipe's weight.
      log_probs: Distances of the selected log-probs, by pruned loss.
      log_z: Distances of the normalisers, by pruned loss.
      log_prob_problems: Why pruned losses or their log-probs could not be compared, in words.
      prune_ranges: How often the routed arm, by its own occupations, would have pruned otherwise
        than the dense one, whose ranges it was handed.
      simple_losses_routed, simple_losses_dense: Simple losses of the routed arm in tiles, and those
        left to k2.
      gradients: Distances by parameter group.
      gradients_twin: Where a group was beyond the configured bound: distances of a dense pass
        whose losses are the same but for rounding. Else empty.
      gradient_bounds: By group, the largest relative distance of a gradient that is no violation.
      has_pruned_gradient: The routed pruned losses were given a gradient to hand on. A recipe that
        still weighs them with 0 gives none, and ``gradients`` say nothing about their backward.
      has_same_draws: Both passes left the random generators in the same state.
      peak_bytes_dense, peak_bytes_routed: Peak memory of forward and backward.
      loss_abs, loss_rel: Difference of the losses, absolute and relative to the dense one.
    """

    update: int
    loss_dense: float
    loss_routed: float
    pruned_losses: list[Distance] = Field(default_factory=list)
    log_probs: list[Distance] = Field(default_factory=list)
    log_z: list[Distance] = Field(default_factory=list)
    log_prob_problems: list[str] = Field(default_factory=list)
    prune_ranges: RangesComparison = RangesComparison()
    simple_losses_routed: int = 0
    simple_losses_dense: int = 0
    gradients: list[Distance] = Field(default_factory=list)
    gradients_twin: list[Distance] = Field(default_factory=list)
    has_pruned_gradient: bool = True
    has_same_draws: bool = True
    peak_bytes_dense: Bytes | None = None
    peak_bytes_routed: Bytes | None = None
    loss_abs: float | None = None
    loss_rel: float
    gradient_bounds: dict[str, float] = Field(default_factory=dict)

    @property
    def judged_gradients(self) -> list[Distance]:
        """The gradients whose relative distance means something."""
        return [g for g in self.gradients if not g.is_negligible]


class ContractRecord(Record):
    """``panda-check.json``: what a contract check found.

    Attributes:
      has_passed: Every batch was compared, every step taken, and nothing violated.
      updates: Batches to compare.
      update_steps: Optimizer steps to take before the parameters are compared.
      steps: Optimizer steps taken.
      precision: The dtype that the recipe trains in.
      dense_recursion: Of the dense passes: "exact", k2's losses over the one in float64, or "own",
        all losses as they are; None: of a check older than this.
      tolerances: The bounds by name: the fields of ``Tolerances``.
      batches: What each compared batch showed.
      parameters: Distances of the routed parameters after ``update_steps``, by group.
      parameters_twin: The same of the dense twin.
      violations: What was violated, in words.
      versions: What the figures depend on.
    """

    has_passed: bool
    updates: int
    update_steps: int = 0
    steps: int = 0
    precision: str | None = None
    dense_recursion: Literal["exact", "own"] | None = None
    tolerances: dict[str, float] = Field(default_factory=dict)
    batches: list[UpdateRecord] = Field(default_factory=list)
    parameters: list[Distance] = Field(default_factory=list)
    parameters_twin: list[Distance] = Field(default_factory=list)
    violations: list[str] = Field(default_factory=list)
    versions: dict[str, Any] = Field(default_factory=dict)

    @property
    def compared_with(self) -> str:
        """What the routed losses were compared with, a sentence; "" where that is not known."""
        if self.dense_recursion is None:
            return ""
        if self.dense_recursion == "own":
            return "Dense: the losses as they are without PANDA."
        return (
            "Dense: the losses as they are without PANDA, but those of k2 over the exact recursion "
            "in float64, as the routed ones."
        )

    @property
    def without_pruned_gradient(self) -> list[int]:
        """Numbers of the compared batches that say nothing about the pruned loss's backward."""
        return [batch.update for batch in self.batches if not batch.has_pruned_gradient]

    def parameter_leeway(self, group: str) -> Leeway:
        """What the distance of a group's updated parameters is held against."""
        twin = {d.group: d.rel_l2 for d in self.parameters_twin}.get(group)
        return Leeway(self.tolerances["parameter_rel_l2"], twin)

    def write(self, folder: Path, rank: int) -> Path:
        """Write the record of a rank into ``folder``, made where it is missing; gives the file."""
        path = rank_path(folder / FILE_NAME, rank)
        folder.mkdir(parents=True, exist_ok=True)
        replace_json(path, self.model_dump())
        return path


def read_contracts(folder: Path) -> list[ContractRecord]:
    """What a check left in a recipe's ``--exp-dir``, by rank; empty where there was none.

    Raises:
      OSError, ValueError: A file cannot be read.
      UsageError: It is none of a contract check.
    """
    found: list[ContractRecord] = []
    while (path := rank_path(folder / FILE_NAME, len(found))).is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        found.append(validated(ContractRecord, content, path))
    return found


def gradient_bounds(
    gradients: list[Distance], twin: list[Distance], bounds: Tolerances
) -> dict[str, float]:
    """By group, the largest relative distance of a gradient that is no violation."""
    of_rounding = {d.group: d.rel_l2 for d in twin}
    return {
        g.group: Leeway(bounds.gradient_rel_l2, of_rounding.get(g.group)).bound for g in gradients
    }


def update_violations(update: UpdateRecord, bounds: Tolerances) -> list[str]:
    """What one batch violates, in words, the judged figure beside its bound."""
    where = f"update {update.update}"
    found = []
    if not (math.isfinite(update.loss_dense) and math.isfinite(update.loss_routed)):
        found.append(
            f"{where}: loss is not finite: dense {update.loss_dense}, routed {update.loss_routed}"
        )
    elif update.loss_rel > bounds.loss_rel:
        found.append(
            f"{where}: loss relative difference {update.loss_rel:.3g}, "
            f"expected at most {bounds.loss_rel:g}"
        )
    problems = [*update.prune_ranges.problems, *update.log_prob_problems]
    found += [f"{where}: {problem}" for problem in problems]
    if not update.has_same_draws:
        found.append(f"{where}: the routed pass drew other random numbers than the dense one")
    for name, distances, bound in (
        ("value", update.pruned_losses, bounds.loss_rel),
        ("selected log-probs", update.log_probs, bounds.log_prob_rel_l2),
        ("log_z", update.log_z, bounds.log_z_rel_l2),
    ):
        found += [
            f"{where}: {name} of {d.group}: rel-L2 {d.rel_l2:.3g}, expected at most {bound:g}"
            for d in distances
            if not d.rel_l2 <= bound
        ]
    for name, distances in (("selected log-prob", update.log_probs), ("log_z", update.log_z)):
        found += [
            f"{where}: one {name} of {d.group}: difference over 1 + |dense| {d.max_scaled:.3g}, "
            f"expected at most {bounds.log_prob_elementwise:g}"
            for d in distances
            if not d.max_scaled <= bounds.log_prob_elementwise
        ]
    total = math.sqrt(sum(g.dense_norm**2 for g in update.gradients))
    for g in update.gradients:
        if g.is_negligible:
            floor = bounds.negligible_gradient * total
            if not g.difference_norm <= floor:
                found.append(
                    f"{where}: gradient of {g.group} (dense norm ~0): difference norm "
                    f"{g.difference_norm:.3g}, expected at most {floor:.3g}"
                )
        elif not (
            g.rel_l2 <= update.gradient_bounds[g.group] and g.cosine >= bounds.gradient_cosine
        ):
            found.append(
                f"{where}: gradient of {g.group}: rel-L2 {g.rel_l2:.3g}, expected at most "
                f"{update.gradient_bounds[g.group]:.3g}; cosine {g.cosine:.9f}, expected at least "
                f"{bounds.gradient_cosine:g}"
            )
    return found


def backward_violations(result: ContractRecord) -> list[str]:
    """Whether no compared batch said anything about the pruned loss's backward."""
    silent = result.without_pruned_gradient
    if not silent or len(silent) < len(result.batches):
        return []
    return [
        f"the transducer loss had no gradient in the {len(silent)} batch(es) compared (does the "
        "recipe give it the weight 0 in its warm-up?): nothing of its backward was compared; "
        "compare batches after the warm-up, e.g. with a shorter --model-warm-step"
    ]


def final_violations(result: ContractRecord) -> list[str]:
    """The groups whose final parameters are further apart than rounding explains."""
    bounds = {d.group: result.parameter_leeway(d.group).bound for d in result.parameters}
    return [
        f"parameters of {d.group} after {result.update_steps} update(s): rel-L2 {d.rel_l2:.3g}, "
        f"expected at most {bounds[d.group]:.3g}"
        for d in result.parameters
        if not d.rel_l2 <= bounds[d.group]
    ]
