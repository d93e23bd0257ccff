"""How far the arms of a bounded run lie apart: loss curves, final parameters, the resumed run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panda_icefall.runs.contract.comparison import group_of
from panda_icefall.runs.records import Arm, nan_last
from panda_icefall.runs.run_record import (
    FinalParameters,
    GroupDistance,
    ParameterDistance,
    Resumption,
    Trajectory,
)

__all__ = ["OUTLIERS", "compare_final_parameters", "compare_resumed", "compare_trajectories"]

# Optimizers of Adam's family amplify rounding noise in a gradient to full steps; a few elements of
# that kind can outweigh all others, and it is chance which run has them.
OUTLIERS = 1e-5
_LARGEST = 8

Parameters = Mapping[str, Tensor]


def compare_trajectories(dense: Arm, routed: Arm, twin: Arm | None) -> Trajectory:
    """Loss curves of the three arms: the largest relative difference from the dense one.

    Where a twin ended early, only the steps that it has are compared: the distance that rounding
    makes grows with the steps.
    """
    arms = [arm for arm in (dense, routed, twin) if arm is not None]
    last = min(len(arm.steps) for arm in arms)
    differences = _differences(dense, routed)[:last]
    of_twin = [] if twin is None else _differences(dense, twin)[:last]
    largest = max(differences, default=math.nan, key=nan_last)
    non_finite = {step.step for arm in arms for step in arm.steps if not step.is_finite}
    return Trajectory(
        steps=len(differences),
        largest_relative_difference=largest,
        step_of_largest=differences.index(largest) + 1 if differences else None,
        first_relative_difference=differences[0] if differences else math.nan,
        twin_largest_relative_difference=max(of_twin, default=None, key=nan_last),
        non_finite=len(non_finite),
    )


def _differences(dense: Arm, other: Arm) -> list[float]:
    tiny = torch.finfo(torch.float32).tiny
    pairs = [
        (math.nan if a.loss is None else a.loss, math.nan if b.loss is None else b.loss)
        for a, b in zip(dense.steps, other.steps)
    ]
    return [abs(b - a) / max(abs(a), tiny) for a, b in pairs]


def compare_final_parameters(
    dense: Parameters, routed: Parameters, twin: Parameters | None
) -> FinalParameters:
    """Relative L2 distance of all parameters together, by group, and where it sits.

    Args:
      dense, routed, twin: State dicts of the same model; the twin may be None, and so are then all
        figures of it.
    """
    to_routed = _squares(dense, routed)
    to_twin = None if twin is None else _squares(dense, twin)

    def of_twin(members: list[str]) -> float | None:
        return None if to_twin is None else _relative(to_twin[name] for name in members)

    names: dict[str, list[str]] = {}
    for name in to_routed:
        names.setdefault(group_of(name), []).append(name)
    total = sum(difference for difference, _, _ in to_routed.values())
    ranked = sorted(to_routed, key=lambda name: to_routed[name][0], reverse=True)
    return FinalParameters(
        rel_l2=_relative(to_routed.values()),
        twin_rel_l2=of_twin(list(to_routed)),
        bulk_rel_l2=_bulk(dense, routed),
        twin_bulk_rel_l2=None if twin is None else _bulk(dense, twin),
        non_finite=[
            name
            for name in dense
            if not all(bool(torch.isfinite(arm[name]).all()) for arm in (dense, routed))
        ],
        groups=[
            GroupDistance(
                group=group,
                rel_l2=_relative(to_routed[name] for name in members),
                max_abs=max(to_routed[name][2] for name in members),
                twin_rel_l2=of_twin(members),
            )
            for group, members in names.items()
        ],
        largest_parameters=[
            ParameterDistance(
                name=name,
                share=to_routed[name][0] / total,
                rel_l2=_relative([to_routed[name]]),
                twin_rel_l2=of_twin([name]),
            )
            for name in ranked[:_LARGEST]
            if to_routed[name][0] > 0
        ],
    )


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
    """Relative L2 distance without the share ``OUTLIERS`` of elements that lie furthest apart."""
    names = [name for name, value in first.items() if value.is_floating_point()]
    base = torch.cat([first[name].to(torch.float64).flatten() for name in names])
    other = torch.cat([second[name].to(torch.float64).flatten() for name in names])
    apart = (other - base).abs().sort().values  # NaN last
    if bool(apart.isnan().any()):
        return math.nan
    kept = apart[: apart.numel() - int(OUTLIERS * apart.numel())]
    return _relative([(kept.square().sum().item(), base.square().sum().item())])


def _relative(squares: Any) -> float:
    parts = list(squares)
    difference, norm = sum(p[0] for p in parts), sum(p[1] for p in parts)
    if difference == 0.0:
        return 0.0
    return math.sqrt(difference / norm) if norm else math.inf


def compare_resumed(
    uninterrupted: Parameters, resumed: Parameters, stopped_after: int, steps: int
) -> Resumption:
    """Final parameters of the resumed run against those of the uninterrupted one."""
    squares = _squares(uninterrupted, resumed)
    return Resumption(
        stopped_after=stopped_after,
        steps=steps,
        is_bitwise=all(torch.equal(v, resumed[k]) for k, v in uninterrupted.items()),
        rel_l2=_relative(squares.values()),
    )
