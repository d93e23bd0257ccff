"""Whether what a bounded run shows holds: each verdict a name, an answer and a sentence.

A dense run whose start differs in the last bit of every parameter, the *twin*, shows what rounding
alone does to this recipe within these steps. Routed training holds where it lies within the
configured bound, or not much further from dense training than the twin; where the twin itself has
left the dense run behind, nothing can be said.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from panda_icefall.runs.bounded.distances import OUTLIERS, nan_last
from panda_icefall.runs.contract.result import TWIN_FACTOR

__all__ = [
    "Leeway",
    "Verdict",
    "contract_verdict",
    "final_parameters_verdict",
    "finite_verdict",
    "pruned_loss_verdict",
    "resume_verdict",
    "trajectory_verdict",
]

_TELLING = 0.1

Verdict = dict[str, Any]


@dataclass(frozen=True)
class Leeway:
    """What a distance from the dense run is held against.

    Attributes:
      configured: The configured bound.
      twin: The dense twin's distance; None where there is none (yet).
      twin_name: What the twin is, in words.
    """

    configured: float
    twin: Optional[float]
    twin_name: str = "dense twin"

    @property
    def bound(self) -> float:
        """The larger of the configured bound and a few times the twin's distance."""
        # A twin that itself went wrong excuses nothing.
        if self.twin is None or not math.isfinite(self.twin):
            return self.configured
        return max(self.configured, TWIN_FACTOR * self.twin)

    def holds(self, distance: float) -> Optional[bool]:
        """Whether ``distance`` is within the bound; None where the bound says nothing."""
        if distance <= self.configured:
            return True
        if self.twin is None and math.isfinite(distance):
            return None
        if not distance <= self.bound:
            return False
        return True if self.bound <= _TELLING else None

    def __str__(self) -> str:
        if self.twin is None:
            return f"configured {self.configured:g}; no {self.twin_name} yet"
        if self.bound == self.configured:
            return f"allowed {self.configured:g} as configured; {self.twin_name} at {self.twin:.1e}"
        return (
            f"allowed {self.bound:.1e} = {TWIN_FACTOR:g} x {self.twin:.1e} ({self.twin_name}), "
            f"configured {self.configured:g}"
        )


def contract_verdict(ranks: Mapping[int, dict[str, Any]]) -> Verdict:
    """From the content of every rank's ``panda-check.json``; the figures told are rank 0's.

    Updated parameters are held against the twin of the check itself.
    """
    contract = ranks[0]
    batches, bounds = contract["batches"], contract["tolerances"]
    losses = [float(b["loss_rel"]) for b in batches]
    gradients = [
        (g, _gradient_twin(b, g["group"]))
        for b in batches
        for g in b["gradients"]
        if not g["is_negligible"]
    ]
    parts = [f"{len(batches)} of {contract['updates']} batches compared"]
    if losses:
        parts.append(f"loss within {max(losses):.1e} (bound {bounds['loss_rel']:g})")
    for key, name in (("log_probs", "selected log-probs"), ("log_z", "log_z")):
        distances = [float(d["rel_l2"]) for b in batches for d in b[key]]
        if distances:
            bound = bounds[f"{key.removesuffix('s')}_rel_l2"]
            parts.append(f"{name} rel-L2 {max(distances, key=nan_last):.1e} (bound {bound:g})")
    if gradients:
        worst, twin = max(gradients, key=lambda pair: nan_last(float(pair[0]["rel_l2"])))
        configured = bounds["gradient_rel_l2"]
        leeway = Leeway(configured, twin, "rounding in the simple loss")
        allowed = f"bound {configured:g}" if twin is None else str(leeway)
        parts.append(
            f"gradient rel-L2 {float(worst['rel_l2']):.1e} in {worst['group']} ({allowed}), "
            f"cosine at least {min(float(g['cosine']) for g, _ in gradients):.9f}"
        )
    if contract["parameters"]:
        twins = {d["group"]: float(d["rel_l2"]) for d in contract["parameters_twin"]}
        worst = max(contract["parameters"], key=lambda d: nan_last(float(d["rel_l2"])))
        parts.append(
            f"updated parameters rel-L2 {float(worst['rel_l2']):.1e} in {worst['group']} "
            f"({Leeway(bounds['parameter_rel_l2'], twins[worst['group']])})"
        )
    for rank, content in ranks.items():
        where = f" on rank {rank}" if len(ranks) > 1 else ""
        violations = content["violations"]
        if violations:
            parts.append(f"{len(violations)} violation(s){where}, the first: {violations[0]}")
    return {
        "name": "contract",
        "holds": all(content["has_passed"] for content in ranks.values()),
        "text": "; ".join(parts),
    }


def _gradient_twin(batch: dict[str, Any], group: str) -> Optional[float]:
    """What rounding alone does to a group's gradient, where the check has measured it."""
    for distance in batch.get("gradients_twin", []):
        if distance["group"] == group and not distance["is_negligible"]:
            return float(distance["rel_l2"])
    return None


def pruned_loss_verdict(routed: dict[str, Any], *, is_whole: bool = True) -> Verdict:
    """Every pruned loss was routed, and its gradient took part.

    Recipes give the pruned loss the weight 0 while they warm up: a run that ends before says
    nothing about its backward.

    Args:
      routed: The routed arm.
      is_whole: All its steps were trained; else those that are missing may bring a gradient.
    """
    counted = routed["counters"]
    losses, dense = counted["losses_routed"], counted["losses_dense"]
    materialised = ", ".join(counted["materialised"]) or "nothing"
    text = f"{losses} losses routed, {dense} not; materialised: {materialised}"
    if counted["sites"]:
        text += (
            f"; {counted['sites_evaluated'] / counted['sites']:.0%} of the sites evaluated forward,"
            f" {counted['sites_backward'] / counted['sites']:.0%} backward"
        )
    if losses and not counted["adjoint_mass"]:
        text += "; its gradient had the weight 0 in every step (the recipe's warm-up?)"
    is_routed = losses > 0 and not dense
    has_gradient = counted["adjoint_mass"] > 0
    is_open = is_routed and not has_gradient and not is_whole
    return {
        "name": "pruned loss",
        "holds": None if is_open else is_routed and has_gradient,
        "text": text,
    }


def trajectory_verdict(
    found: dict[str, Any], expected_steps: int, leeway: Leeway, *, is_whole: bool = True
) -> Verdict:
    """Loss curves lie together, over all steps that were asked for.

    Args:
      found: From ``compare_trajectories``.
      expected_steps: Steps that were asked for.
      leeway: What the largest difference is held against.
      is_whole: The arms ended by themselves; else the steps that were trained are judged.
    """
    largest = found["largest_relative_difference"]
    has_all = found["steps"] == expected_steps or not is_whole
    return {
        "name": "trajectory",
        "holds": has_all and leeway.holds(largest),
        "text": (
            f"{found['steps']} of {expected_steps} steps, losses within {largest:.1e} of the dense "
            f"ones ({leeway})"
        ),
    }


def final_parameters_verdict(found: dict[str, Any], leeway: Leeway) -> Verdict:
    """Parameters after the last step, without the few elements that lie furthest apart."""
    twin = "" if leeway.twin is None else f" (dense twin {found['twin_rel_l2']:.1e})"
    return {
        "name": "final parameters",
        "holds": leeway.holds(found["bulk_rel_l2"]),
        "text": (
            f"rel-L2 {found['rel_l2']:.1e}{twin}; "
            f"{found['bulk_rel_l2']:.1e} without the {OUTLIERS:.3%} of elements furthest apart "
            f"({leeway})"
        ),
    }


def finite_verdict(trajectory: dict[str, Any], final: Optional[dict[str, Any]]) -> Verdict:
    """No NaN or infinity in any loss or final parameter; None: there are no parameters yet."""
    steps = trajectory["non_finite"]
    names = final["non_finite"] if final is not None else []
    models = f" and {len(names)} tensor(s) of the model" if final is not None else ""
    return {
        "name": "finite",
        "holds": steps == 0 and not names,
        "text": f"{steps} step(s){models} with NaN or infinity",
    }


def resume_verdict(found: dict[str, Any], leeway: Optional[Leeway]) -> Verdict:
    """The resumed run ends where the uninterrupted one does.

    Args:
      found: From ``compare_resumed``.
      leeway: Of the relative distance, where a device repeats to rounding only; None: same bits.
    """
    distance = "the same bits" if found["is_bitwise"] else f"rel-L2 {found['rel_l2']:.1e}"
    allowed = "expected the same bits" if leeway is None else str(leeway)
    within = leeway.holds(found["rel_l2"]) if leeway is not None else False
    return {
        "name": "resume",
        "holds": found["is_bitwise"] or within,
        "text": (
            f"stopped after {found['stopped_after']} of {found['steps']} steps and resumed from "
            f"the recipe's checkpoint: {distance} ({allowed})"
        ),
    }
