"""What a bounded run shows, and whether it holds: distances, their bounds, a sentence each.

A dense run whose start differs in the last bit of every parameter, the *twin*, shows what rounding
alone does to this recipe within these steps: optimizers of Adam's family move an element whose
gradient is rounding noise by whole steps, in a direction that rounding decides. Routed training
holds where it is within the configured bound, or not much further from dense training than the
twin. A few such elements can outweigh all others, and it is chance which run has them: parameters
are judged without the 0.001 % of elements that lie furthest apart. Both figures are reported.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.runs.bounded.arms import losses_of, non_finite_steps
from panda_icefall.runs.contract.comparison import group_of

__all__ = [
    "compare_final_parameters",
    "compare_resumed",
    "compare_trajectories",
    "contract_verdict",
    "final_parameters_verdict",
    "finite_verdict",
    "pruned_loss_verdict",
    "resume_verdict",
    "trajectory_verdict",
]

_LARGEST = 8
# One twin is one draw of a distance that varies by a few times from draw to draw.
_TWIN_FACTOR = 4.0
_OUTLIERS = 1e-5

Parameters = Mapping[str, Tensor]
Verdict = dict[str, Any]


def compare_trajectories(
    dense: dict[str, Any], routed: dict[str, Any], twin: dict[str, Any], tolerance: float
) -> dict[str, Any]:
    """Loss curves of the three arms: the largest relative difference from the dense one."""
    differences = _differences(dense, routed)
    twin_largest = max(_differences(dense, twin), default=math.nan, key=_nan_last)
    largest = max(differences, default=math.nan, key=_nan_last)
    non_finite = {step for arm in (dense, routed, twin) for step in non_finite_steps(arm)}
    return {
        "steps": len(differences),
        "largest_relative_difference": largest,
        "step_of_largest": differences.index(largest) + 1 if differences else None,
        "first_relative_difference": differences[0] if differences else math.nan,
        "twin_largest_relative_difference": twin_largest,
        "bound": _bound(tolerance, twin_largest),
        "non_finite": len(non_finite),
    }


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _bound(tolerance: float, twin: float) -> float:
    """What holds: a twin that itself went wrong excuses nothing."""
    return max(tolerance, _TWIN_FACTOR * twin) if math.isfinite(twin) else tolerance


def _differences(dense: dict[str, Any], other: dict[str, Any]) -> list[float]:
    pairs = zip(losses_of(dense), losses_of(other))
    return [abs(b - a) / max(abs(a), torch.finfo(torch.float32).tiny) for a, b in pairs]


def compare_final_parameters(
    dense: Parameters, routed: Parameters, twin: Parameters, tolerance: float
) -> dict[str, Any]:
    """Relative L2 distance of all parameters together, by group, and where it sits.

    Args:
      dense, routed, twin: State dicts of the same model.
      tolerance: The configured bound of the whole.

    Returns:
      ``rel_l2`` and ``twin_rel_l2`` of everything; ``bulk_rel_l2`` and ``twin_bulk_rel_l2``
      without the elements furthest apart, and the ``bound`` of the first of these; ``groups``; and
      the ``largest_parameters`` with their share of the squared distance.
    """
    to_routed, to_twin = _squares(dense, routed), _squares(dense, twin)
    twin_bulk = _bulk(dense, twin)
    names: dict[str, list[str]] = {}
    for name in to_routed:
        names.setdefault(group_of(name), []).append(name)
    total = sum(difference for difference, _, _ in to_routed.values())
    ranked = sorted(to_routed, key=lambda name: to_routed[name][0], reverse=True)
    return {
        "rel_l2": _relative(to_routed.values()),
        "twin_rel_l2": _relative(to_twin.values()),
        "bulk_rel_l2": _bulk(dense, routed),
        "twin_bulk_rel_l2": twin_bulk,
        "tolerance": tolerance,
        "bound": _bound(tolerance, twin_bulk),
        "non_finite": sum(
            not bool(torch.isfinite(value).all())
            for parameters in (dense, routed)
            for value in parameters.values()
        ),
        "groups": [
            {
                "group": group,
                "rel_l2": _relative(to_routed[name] for name in members),
                "max_abs": max(to_routed[name][2] for name in members),
                "twin_rel_l2": _relative(to_twin[name] for name in members),
            }
            for group, members in names.items()
        ],
        "largest_parameters": [
            {
                "name": name,
                "share": to_routed[name][0] / total,
                "rel_l2": _relative([to_routed[name]]),
                "twin_rel_l2": _relative([to_twin[name]]),
            }
            for name in ranked[:_LARGEST]
            if to_routed[name][0] > 0
        ],
    }


def _squares(first: Parameters, second: Parameters) -> dict[str, tuple[float, float, float]]:
    """Squared distance, squared norm of the first and largest difference, by name."""
    found = {}
    for name, value in first.items():
        if value.is_floating_point():
            a, b = value.to(torch.float64), second[name].to(torch.float64)
            difference = (b - a).abs()
            largest = difference.max().item() if difference.numel() else 0.0
            found[name] = (difference.square().sum().item(), a.square().sum().item(), largest)
    return found


def _bulk(first: Parameters, second: Parameters) -> float:
    """Relative L2 distance without the share ``_OUTLIERS`` of elements that lie furthest apart."""
    names = [name for name, value in first.items() if value.is_floating_point()]
    base = torch.cat([first[name].to(torch.float64).flatten() for name in names])
    other = torch.cat([second[name].to(torch.float64).flatten() for name in names])
    apart = (other - base).abs().sort().values  # NaN last
    if bool(apart.isnan().any()):
        return math.nan
    kept = apart[: apart.numel() - int(_OUTLIERS * apart.numel())]
    return _relative([(kept.square().sum().item(), base.square().sum().item())])


def _relative(squares: Any) -> float:
    parts = list(squares)
    difference, norm = sum(p[0] for p in parts), sum(p[1] for p in parts)
    if difference == 0.0:
        return 0.0
    return math.sqrt(difference / norm) if norm else math.inf


def compare_resumed(
    uninterrupted: Parameters, resumed: Parameters, stopped_after: int, steps: int
) -> dict[str, Any]:
    """Final parameters of the resumed run against those of the uninterrupted one."""
    squares = _squares(uninterrupted, resumed)
    return {
        "stopped_after": stopped_after,
        "steps": steps,
        "is_bitwise": all(torch.equal(v, resumed[k]) for k, v in uninterrupted.items()),
        "rel_l2": _relative(squares.values()),
    }


def contract_verdict(contract: dict[str, Any]) -> Verdict:
    """From the content of ``panda-check.json``."""
    batches = contract["batches"]
    losses = [float(b["loss_rel"]) for b in batches]
    gradients = [g for b in batches for g in b["gradients"] if not g["is_negligible"]]
    bounds = contract["tolerances"]
    parts = [f"{len(batches)} of {contract['updates']} batches compared"]
    if losses:
        parts.append(f"loss within {max(losses):.1e} (bound {bounds['loss_rel']:g})")
    if gradients:
        worst = max(gradients, key=lambda g: _nan_last(float(g["rel_l2"])))
        parts.append(
            f"gradient rel-L2 {float(worst['rel_l2']):.1e} in {worst['group']} "
            f"(bound {bounds['gradient_rel_l2']:g})"
        )
        parts.append(f"cosine at least {min(float(g['cosine']) for g in gradients):.9f}")
    for key, name in (("log_probs", "selected log-probs"), ("log_z", "log_z")):
        distances = [float(d["rel_l2"]) for b in batches for d in b[key]]
        if distances:
            bound = bounds[f"{key.removesuffix('s')}_rel_l2"]
            parts.append(f"{name} rel-L2 {max(distances, key=_nan_last):.1e} (bound {bound:g})")
    violations = contract["violations"]
    if violations:
        parts.append(f"{len(violations)} violation(s), the first: {violations[0]}")
    return {"name": "contract", "holds": bool(contract["has_passed"]), "text": "; ".join(parts)}


def pruned_loss_verdict(routed: dict[str, Any]) -> Verdict:
    """Every pruned loss was routed, and its gradient took part.

    Recipes give the pruned loss the weight 0 while they warm up: a run that ends before says
    nothing about its backward.
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
    return {
        "name": "pruned loss",
        "holds": losses > 0 and not dense and counted["adjoint_mass"] > 0,
        "text": text,
    }


def trajectory_verdict(found: dict[str, Any], expected_steps: int) -> Verdict:
    """Loss curves lie together, over all steps that were asked for."""
    bound, largest = found["bound"], found["largest_relative_difference"]
    return {
        "name": "trajectory",
        "holds": found["steps"] == expected_steps and largest <= bound,
        "text": (
            f"{found['steps']} of {expected_steps} steps, losses within {largest:.1e} of the dense "
            f"ones (bound {bound:.1e}; dense twin "
            f"{found['twin_largest_relative_difference']:.1e})"
        ),
    }


def final_parameters_verdict(found: dict[str, Any]) -> Verdict:
    """Parameters after the last step."""
    return {
        "name": "final parameters",
        "holds": found["bulk_rel_l2"] <= found["bound"],
        "text": (
            f"rel-L2 {found['rel_l2']:.1e} (dense twin {found['twin_rel_l2']:.1e}); "
            f"{found['bulk_rel_l2']:.1e} without the {_OUTLIERS:.3%} of elements furthest apart "
            f"(bound {found['bound']:.1e}; dense twin {found['twin_bulk_rel_l2']:.1e})"
        ),
    }


def finite_verdict(trajectory: dict[str, Any], final: dict[str, Any]) -> Verdict:
    """No NaN or infinity in any loss or final parameter."""
    steps, parameters = trajectory["non_finite"], final["non_finite"]
    return {
        "name": "finite",
        "holds": steps == 0 and parameters == 0,
        "text": f"{steps} step(s) and {parameters} parameter(s) with NaN or infinity",
    }


def resume_verdict(found: dict[str, Any], twin_rel_l2: float, tolerance: float) -> Verdict:
    """The resumed run ends where the uninterrupted one does."""
    bound = _bound(tolerance, twin_rel_l2)
    same = "the same bits" if found["is_bitwise"] else f"rel-L2 {found['rel_l2']:.1e}"
    return {
        "name": "resume",
        "holds": found["is_bitwise"] or found["rel_l2"] <= bound,
        "text": (
            f"stopped after {found['stopped_after']} of {found['steps']} steps and resumed from "
            f"the recipe's checkpoint: {same} (bound {bound:.1e})"
        ),
    }
