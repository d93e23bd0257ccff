"""How far routed losses and gradients are from the dense ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds of relative differences: of each loss, and of each group's gradient (L2).

    In float32 they are to the dense arm, whose k2 runs the recursion of the routed one. Where that
    arm rounds too much, below float32 or with a CTC head, whose float32 lattice has an error of its
    own, both arms are compared with a reference; the routed one may be off by twice the dense one's
    own error more.
    """

    loss: float
    group: float


TOLERANCES = {
    torch.float32: Tolerance(loss=1e-6, group=2e-6),
    torch.bfloat16: Tolerance(loss=2.0**-8, group=2.0**-8),
}


def largest_relative_difference(values: list[Tensor], expected: list[Tensor]) -> float:
    """The largest of any element; inf where only one of both is 0 or where one is not finite."""
    assert [v.shape for v in values] == [e.shape for e in expected]
    largest = 0.0
    for value, reference in zip(values, expected):
        differs = value != reference
        difference = (value - reference)[differs].abs() / reference[differs].abs()
        if difference.numel():
            largest = max(
                largest, torch.nan_to_num(difference, nan=torch.inf, posinf=torch.inf).max().item()
            )
    return largest


def group_norms(gradients: dict[str, Tensor]) -> dict[str, float]:
    """L2 norm of the gradients of each top-level module: encoder, decoder, joiner..."""
    groups: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        groups.setdefault(name.split(".")[0], []).append(gradient.norm())
    return {group: torch.stack(norms).norm().item() for group, norms in groups.items()}


def group_differences(
    gradients: dict[str, Tensor], expected: dict[str, Tensor]
) -> dict[str, float]:
    """Relative L2 difference of each group; inf where a norm is not finite or 0 in one alone."""
    errors = group_norms({name: gradients[name] - expected[name] for name in expected})
    norms = group_norms(expected)
    return {group: _ratio(errors[group], norms[group]) for group in norms}


def _ratio(error: float, norm: float) -> float:
    if error == 0 and math.isfinite(norm):
        return 0.0
    ratio = error / norm if norm else math.inf
    return ratio if math.isfinite(norm) and math.isfinite(ratio) else math.inf


def bad_parameters(gradients: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Parameters further off than 1e-5 of their own gradient plus 1e-6 of their group's.

    The second term is for gradients that nearly cancel, such as a bias ahead of a softmax: there
    the dense loss in fp32 is itself 1e-3 (relative) away from the one in fp64.
    """
    norms = group_norms(expected)
    allowed = {
        name: 1e-5 * gradient.norm().item() + 1e-6 * norms[name.split(".")[0]]
        for name, gradient in expected.items()
    }
    errors = {name: (gradients[name] - expected[name]).norm().item() for name in expected}
    return {name: error for name, error in errors.items() if not error <= allowed[name]}
