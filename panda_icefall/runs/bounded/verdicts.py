"""Whether what a bounded run shows holds: each verdict a name, an answer and a sentence.

A dense run whose start is perturbed by one ulp, the *twin*, is the control run: it shows what
rounding alone does to this recipe within these steps. Routed training holds where it lies within
the configured bound, or not much further from dense training than the twin; where the twin itself
is far from the dense run, nothing can be said.
"""

from collections.abc import Mapping

from panda_icefall.runs.bounded.distances import OUTLIERS
from panda_icefall.runs.contract.result import ContractRecord, Distance, UpdateRecord
from panda_icefall.runs.contract.tolerances import Leeway
from panda_icefall.runs.records import Arm, nan_first, nan_last
from panda_icefall.runs.run_record import FinalParameters, Resumption, Trajectory, Verdict

__all__ = [
    "contract_verdict",
    "final_parameters_verdict",
    "finite_verdict",
    "resume_verdict",
    "trajectory_verdict",
    "transducer_loss_verdict",
]


def contract_verdict(ranks: Mapping[int, ContractRecord]) -> Verdict:
    """From every rank's ``panda-check.json``; its figures are rank 0's.

    Updated parameters are held against the twin of the check itself.
    """
    contract = ranks[0]
    batches, bounds = contract.batches, contract.tolerances
    parts = [f"{len(batches)} of {contract.updates} batches compared"]
    if batches:
        loss = max((batch.loss_rel for batch in batches), key=nan_last)
        parts.append(f"loss within {loss:.1e} (bound {bounds['loss_rel']:g})")
    log_probs = [d.rel_l2 for batch in batches for d in batch.log_probs]
    log_z = [d.rel_l2 for batch in batches for d in batch.log_z]
    for name, distances, key in (
        ("selected log-probs", log_probs, "log_prob_rel_l2"),
        ("log_z", log_z, "log_z_rel_l2"),
    ):
        if distances:
            worst = max(distances, key=nan_last)
            parts.append(f"{name} rel-L2 {worst:.1e} (bound {bounds[key]:g})")
    gradients = [(batch, g) for batch in batches for g in batch.judged_gradients]
    if gradients:
        parts.append(_gradients(gradients, bounds["gradient_rel_l2"]))
    if contract.parameters:
        furthest = max(contract.parameters, key=lambda d: nan_last(d.rel_l2))
        leeway = contract.parameter_leeway(furthest.group)
        parts.append(
            f"updated parameters rel-L2 {furthest.rel_l2:.1e} in {furthest.group} ({leeway})"
        )
    for rank, content in ranks.items():
        where = f" on rank {rank}" if len(ranks) > 1 else ""
        if content.violations:
            count, first = len(content.violations), content.violations[0]
            parts.append(f"{count} violation(s){where}, the first: {first}")
    holds = all(content.has_passed for content in ranks.values())
    return Verdict(name="contract", holds=holds, text="; ".join(parts))


def _gradients(gradients: list[tuple[UpdateRecord, Distance]], configured: float) -> str:
    """The gradient furthest apart, and what it is held against."""
    batch, worst = max(gradients, key=lambda pair: nan_last(pair[1].rel_l2))
    of_rounding = [
        d.rel_l2 for d in batch.gradients_twin if d.group == worst.group and not d.is_negligible
    ]
    allowed = f"bound {configured:g}"
    if of_rounding:
        allowed = str(Leeway(configured, of_rounding[0], "rounding in the loss"))
    cosine = min((g.cosine for _, g in gradients), key=nan_first)
    return (
        f"gradient rel-L2 {worst.rel_l2:.1e} in {worst.group} ({allowed}), "
        f"cosine at least {cosine:.9f}"
    )


def transducer_loss_verdict(routed: Arm, *, is_whole: bool = True) -> Verdict:
    """Every pruned or full-lattice loss was routed, and its gradient took part.

    Recipes give the pruned loss the weight 0 while they warm up: a run that ends before says
    nothing about its backward.

    Args:
      routed: The routed arm.
      is_whole: All its steps were trained; else those that are missing may bring a gradient.
    """
    counted = routed.counters
    losses, dense = counted.losses_routed, counted.losses_dense
    materialised = ", ".join(counted.materialised) or "nothing"
    text = f"{losses} losses routed, {dense} not; materialised: {materialised}"
    if counted.sites:
        text += (
            f"; {counted.sites_evaluated / counted.sites:.0%} of the sites evaluated forward,"
            f" {counted.sites_backward / counted.sites:.0%} backward"
        )
    if losses and not counted.adjoint_mass:
        text += "; the recipe gave the loss the weight 0 in every step (warm-up?)"
    is_routed = losses > 0 and not dense
    has_gradient = counted.adjoint_mass > 0
    is_open = is_routed and not has_gradient and not is_whole
    holds = None if is_open else is_routed and has_gradient
    return Verdict(name="transducer loss", holds=holds, text=text)


def trajectory_verdict(
    found: Trajectory, expected_steps: int, leeway: Leeway, *, is_whole: bool = True
) -> Verdict:
    """Loss curves lie together, over all steps that were asked for.

    Args:
      found: The curves compared.
      expected_steps: Steps that were asked for.
      leeway: What the largest difference is held against.
      is_whole: The arms ended by themselves; else the steps that were trained are judged.
    """
    largest = found.largest_relative_difference
    has_all = found.steps == expected_steps or not is_whole
    return Verdict(
        name="trajectory",
        holds=has_all and leeway.holds(largest),
        text=(
            f"{found.steps} of {expected_steps} steps, losses within {largest:.1e} of the dense "
            f"ones ({leeway})"
        ),
    )


def final_parameters_verdict(found: FinalParameters, leeway: Leeway) -> Verdict:
    """Parameters after the last step, without the few elements that lie furthest apart."""
    twin = "" if found.twin_rel_l2 is None else f" (dense twin {found.twin_rel_l2:.1e})"
    return Verdict(
        name="final parameters",
        holds=leeway.holds(found.bulk_rel_l2),
        text=(
            f"rel-L2 {found.rel_l2:.1e}{twin}; "
            f"{found.bulk_rel_l2:.1e} without the {OUTLIERS:.3%} of elements that differ most "
            f"({leeway})"
        ),
    )


def finite_verdict(trajectory: Trajectory, final: FinalParameters | None) -> Verdict:
    """No NaN or infinity in any loss or final parameter; None: there are no parameters yet."""
    steps = trajectory.non_finite
    names = final.non_finite if final is not None else []
    models = f" and {len(names)} tensor(s) of the model" if final is not None else ""
    return Verdict(
        name="finite",
        holds=steps == 0 and not names,
        text=f"{steps} step(s){models} with NaN or infinity",
    )


def resume_verdict(found: Resumption, leeway: Leeway | None) -> Verdict:
    """The resumed run ends where the uninterrupted one does.

    Args:
      found: Both compared.
      leeway: Of the relative distance, where a device repeats to rounding only; None: same bits.
    """
    distance = "bit-identical" if found.is_bitwise else f"rel-L2 {found.rel_l2:.1e}"
    allowed = "expected bit-identical" if leeway is None else str(leeway)
    within = leeway.holds(found.rel_l2) if leeway is not None else False
    return Verdict(
        name="resume",
        holds=found.is_bitwise or within,
        text=(
            f"stopped after {found.stopped_after} of {found.steps} steps and resumed from "
            f"the recipe's checkpoint: {distance} ({allowed})"
        ),
    )
