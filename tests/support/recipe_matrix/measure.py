"""A row's outcome: both arms run, training and validation, and what came of it."""

from __future__ import annotations

import math
import re
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from panda_icefall.routing import PandaError
from recipe_matrix.arms import Pass, recipe_passes
from recipe_matrix.comparison import (
    TOLERANCES,
    bad_parameters,
    group_differences,
    largest_relative_difference,
)
from recipe_matrix.row import Row

ROUTED = "routed"
MATERIALISED = "materialised"
REFUSED = "refused"
OWN_FAILURE = "recipe fails by itself"


@dataclass(frozen=True)
class Outcome:
    """One line of the table.

    Attributes:
      name, notes: the row's.
      kind: ROUTED, MATERIALISED, REFUSED or OWN_FAILURE.
      reason: the operation, the refusal, or the recipe's error; empty for ROUTED.
      joiner: what the joiners did to a site.
      losses: pruned losses, and those of full lattices, per batch.
      simple: simple losses per batch, by how they were computed: `1 deferred`, and the reason where
        a projection gave a tensor.
      frames, frames_differing: frames inside the boundary, and those of them for which the routed
        arm would have chosen other prune ranges than those of the dense arm, which both used.
      model_file: below `egs`; empty if the recipe failed before it had a model.
      loss_difference: largest relative difference of any element of any output.
      gradient_difference: largest relative L2 difference of any top-level module's gradients.
      violations: what the contract forbids, in words; empty when it holds.
    """

    name: str
    notes: str
    kind: str
    reason: str = ""
    joiner: str = ""
    losses: int = 0
    simple: str = ""
    frames: int = 0
    frames_differing: int = 0
    model_file: str = ""
    loss_difference: float = 0.0
    gradient_difference: float = 0.0
    violations: list[str] = field(default_factory=list)


def measure(row: Row) -> Outcome:
    """Run a row.

    Returns:
      Its outcome; OWN_FAILURE only if the recipe, without PANDA, raised the error the row names.

    Raises:
      Exception: any other that the dense arm raised.
    """
    with ExitStack() as stack:
        try:
            arms = stack.enter_context(recipe_passes(row))
            expected = [arms.dense(is_training=is_training) for is_training in (True, False)]
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if not row.own_failure or not re.search(row.own_failure, reason):
                raise
            return Outcome(row.name, row.notes, OWN_FAILURE, reason)
        try:
            found = [arms.routed(is_training=is_training) for is_training in (True, False)]
        except PandaError as error:
            return Outcome(row.name, row.notes, REFUSED, str(error), violations=[str(error)])
        exact = expected
        if row.has_reference:
            exact = [arms.reference(is_training=is_training) for is_training in (True, False)]
    return _compared(row, expected, found, exact)


def _compared(row: Row, expected: list[Pass], found: list[Pass], exact: list[Pass]) -> Outcome:
    violations = []
    losses, groups = [], {}
    for dense, routed, reference in zip(expected, found, exact):
        violations += _dense_faults(dense)
        violations += _miscounts(dense, routed)
        losses.append(largest_relative_difference(routed.outputs, dense.outputs))
        if not routed.gradients.keys() == dense.gradients.keys() == reference.gradients.keys():
            violations.append("other parameters got gradients")
            continue
        if dense.gradients:
            groups = group_differences(routed.gradients, dense.gradients)
        violations += _too_far(row, dense, routed, reference)
        # Rounding the logits moves gradients that nearly cancel by more than any useful bound.
        if row.precision == torch.float32:
            bad = bad_parameters(routed.gradients, reference.gradients)
            violations += [f"gradient of {name} off by {error}" for name, error in bad.items()]
    materialised = sorted({operation for p in found for operation in p.materialised or {}})
    operations = [operation for operation in materialised if not _is_of_projection(operation)]
    return Outcome(
        row.name,
        row.notes,
        MATERIALISED if operations else ROUTED,
        ", ".join(operations),
        joiner="; ".join(sorted({joiner for p in found for joiner in p.joiners})),
        losses=expected[0].losses,
        simple=_simple(found[0]),
        frames=sum(p.frames for p in found),
        frames_differing=sum(p.frames_differing for p in found),
        model_file=expected[0].model_file,
        loss_difference=max(losses),
        gradient_difference=max(groups.values(), default=0.0),
        violations=violations,
    )


def _too_far(row: Row, dense: Pass, routed: Pass, reference: Pass) -> list[str]:
    """What is further from the reference than the bounds and the dense arm's own error allow."""
    tolerance = TOLERANCES[row.precision]
    arms = (routed, dense)
    errors = {
        "losses": [
            *(largest_relative_difference(arm.outputs, reference.outputs) for arm in arms),
            tolerance.loss,
        ]
    }
    groups = [group_differences(arm.gradients, reference.gradients) for arm in arms]
    for group in groups[0]:
        errors[f"gradient of {group}"] = [*(found[group] for found in groups), tolerance.group]
    return [
        f"{what}: off by {error}, expected {bound + 2 * own} at most"
        for what, (error, own, bound) in errors.items()
        if not error <= bound + 2 * own < math.inf
    ]


def _dense_faults(dense: Pass) -> list[str]:
    """A batch that shows nothing is no evidence."""
    faults = []
    if dense.losses == 0:
        faults.append("the dense arm computed no pruned and no full-lattice loss")
    if not all(torch.isfinite(output).all() for output in dense.outputs):
        faults.append("the dense arm gave an output that is not finite")
    return faults


def _miscounts(dense: Pass, routed: Pass) -> list[str]:
    joints = {
        operation: count
        for operation, count in (routed.materialised or {}).items()
        if not _is_of_projection(operation)
    }
    found = (routed.losses, routed.losses_dense, joints)
    faults = []
    if found != (dense.losses, 0, {}):
        faults.append(
            f"(routed, dense, materialised): got {found}, expected ({dense.losses}, 0, {{}})"
        )
    simple, expected = (sum((p.simple or {}).values()) for p in (routed, dense))
    if simple != expected:
        faults.append(f"simple losses: got {simple}, expected {expected}")
    if routed.ctc_losses != dense.ctc_losses:
        faults.append(f"CTC losses: got {routed.ctc_losses}, expected {dense.ctc_losses}")
    return faults


def _is_of_projection(operation: str) -> bool:
    """Whether a projection became a tensor, rather than a joiner."""
    return operation.startswith(("simple_", "ctc_output", "st_ctc_output"))


def _simple(routed: Pass) -> str:
    counts = ", ".join(f"{count} {how}" for how, count in (routed.simple or {}).items())
    reasons = sorted(name for name in routed.materialised or {} if name.startswith("simple_"))
    return (counts or "none") + (f" ({', '.join(reasons)})" if reasons else "")
