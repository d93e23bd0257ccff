"""What a contract check found, and which of it is a violation."""

import math
from dataclasses import dataclass, field

import torch

from panda_icefall.runs.contract.comparison import Distance
from panda_icefall.runs.contract.passes import RangesComparison
from panda_icefall.runs.contract.tolerances import Tolerances, tolerances_for

# Routed gradients and parameters may be this many times as far from dense ones as those of a dense
# pass or run that is the same but for rounding: one draw of a distance that varies by a few times
# from draw to draw.
TWIN_FACTOR = 4.0

__all__ = [
    "ContractResult",
    "UpdateResult",
    "backward_violations",
    "final_violations",
    "update_violations",
]


@dataclass(frozen=True)
class UpdateResult:
    """What one batch showed; peaks are bytes above the arm's start.

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
        whose simple loss is the same but for rounding. Else empty.
      has_pruned_gradient: The routed pruned losses were given a gradient to hand on. A recipe that
        still weighs them with 0 gives none, and ``gradients`` say nothing about their backward.
      has_same_draws: Both passes left the random generators in the same state.
      peak_bytes_dense: Peak memory of forward and backward, dense.
      peak_bytes_routed: The same, routed.
    """

    update: int
    loss_dense: float
    loss_routed: float
    pruned_losses: list[Distance]
    log_probs: list[Distance]
    log_z: list[Distance]
    log_prob_problems: list[str]
    prune_ranges: RangesComparison
    simple_losses_routed: int
    simple_losses_dense: int
    gradients: list[Distance]
    gradients_twin: list[Distance]
    has_pruned_gradient: bool
    has_same_draws: bool
    peak_bytes_dense: int
    peak_bytes_routed: int

    @property
    def loss_abs(self) -> float:
        """Absolute difference of the losses."""
        return abs(self.loss_routed - self.loss_dense)

    @property
    def loss_rel(self) -> float:
        """Difference of the losses relative to the dense one."""
        return self.loss_abs / max(abs(self.loss_dense), torch.finfo(torch.float32).tiny)

    def gradient_bounds(self, bounds: Tolerances) -> dict[str, float]:
        """By group, the largest relative distance of a gradient that is no violation."""
        twin = {d.group: d.rel_l2 for d in self.gradients_twin if math.isfinite(d.rel_l2)}
        return {
            g.group: max(bounds.gradient_rel_l2, TWIN_FACTOR * twin.get(g.group, 0.0))
            for g in self.gradients
        }


@dataclass
class ContractResult:
    """All that a contract check found; it passed if it is complete and ``violations`` is empty.

    Attributes:
      updates: Batches to compare.
      update_steps: Optimizer steps to take before the parameters are compared.
      steps: Optimizer steps taken.
      precision: The dtype that the recipe trains in.
      tolerances: The bounds.
      batches: What each compared batch showed.
      parameters: Distances of the routed parameters after ``update_steps``, by group.
      parameters_twin: The same of the dense twin.
      violations: What was violated, in words.
      not_routed: Why no loss was routed, if none was.
    """

    updates: int
    update_steps: int
    steps: int = 0
    precision: str = "float32"
    tolerances: Tolerances = field(default_factory=lambda: tolerances_for(torch.float32))
    batches: list[UpdateResult] = field(default_factory=list)
    parameters: list[Distance] = field(default_factory=list)
    parameters_twin: list[Distance] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    not_routed: str | None = None

    @property
    def without_pruned_gradient(self) -> list[int]:
        """Numbers of the compared batches that say nothing about the pruned loss's backward."""
        return [b.update for b in self.batches if not b.has_pruned_gradient]

    @property
    def has_passed(self) -> bool:
        """Whether every batch was compared, every step taken, and nothing violated."""
        is_complete = len(self.batches) == self.updates and self.steps == self.update_steps
        return is_complete and not self.violations


def update_violations(update: UpdateResult, bounds: Tolerances) -> list[str]:
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
    gradient_bounds = update.gradient_bounds(bounds)
    for g in update.gradients:
        if g.is_negligible:
            floor = bounds.negligible_gradient * total
            if not g.difference_norm <= floor:
                found.append(
                    f"{where}: gradient of {g.group} (dense norm ~0): difference norm "
                    f"{g.difference_norm:.3g}, expected at most {floor:.3g}"
                )
        elif not (g.rel_l2 <= gradient_bounds[g.group] and g.cosine >= bounds.gradient_cosine):
            found.append(
                f"{where}: gradient of {g.group}: rel-L2 {g.rel_l2:.3g}, expected at most "
                f"{gradient_bounds[g.group]:.3g}; cosine {g.cosine:.9f}, expected at least "
                f"{bounds.gradient_cosine:g}"
            )
    return found


def backward_violations(result: ContractResult) -> list[str]:
    """Whether no compared batch said anything about the pruned loss's backward."""
    silent = result.without_pruned_gradient
    if not silent or len(silent) < len(result.batches):
        return []
    return [
        f"the pruned loss had no gradient in the {len(silent)} batch(es) compared (does the "
        "recipe give it the weight 0 while it warms up?): nothing of its backward was compared; "
        "compare batches after the warm-up, e.g. with a shorter --model-warm-step"
    ]


def final_violations(result: ContractResult) -> list[str]:
    """The groups whose final parameters are further apart than rounding explains."""
    found = []
    for routed, twin in zip(result.parameters, result.parameters_twin):
        # A twin that itself went wrong excuses nothing.
        rounding = TWIN_FACTOR * twin.rel_l2 if math.isfinite(twin.rel_l2) else 0.0
        bound = max(result.tolerances.parameter_rel_l2, rounding)
        if not routed.rel_l2 <= bound:
            found.append(
                f"parameters of {routed.group} after {result.update_steps} update(s): "
                f"rel-L2 {routed.rel_l2:.3g}, expected at most {bound:.3g}"
            )
    return found
