"""Distances between both arms: gradients and parameters by group, and each pruned loss."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panda_icefall.runs.contract.passes import ObservedLoss
from panda_icefall.runs.contract.result import Distance
from panda_icefall.runs.contract.tolerances import Tolerances

__all__ = [
    "PrunedLossDistances",
    "compare_gradients",
    "compare_parameters",
    "compare_pruned_losses",
    "group_of",
]

_Pair = tuple[str, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class PrunedLossDistances:
    """What the pruned losses of one batch read at their sites and return, dense against routed.

    Attributes:
      values: Of what they return, a number or one per utterance, one distance per pruned loss.
      log_probs: Of the selected log-probs (target and blank), one distance per pruned loss.
      log_z: Of the normalisers, one distance per pruned loss.
      problems: Why some of them could not be compared, in words.
    """

    values: list[Distance]
    log_probs: list[Distance]
    log_z: list[Distance]
    problems: list[str]


def group_of(parameter_name: str) -> str:
    """The group of a parameter: its top-level module.

    A single parameter is too small a unit to judge by: where its gradient nearly cancels (a
    joiner's ``decoder_proj.weight`` at the start of training, when all states look alike), the
    dense path's own fp32 error, from the recursion's sums, passes 1e-5 of what is left.
    """
    return parameter_name.split(".", 1)[0]


def compare_gradients(
    dense: nn.Module, routed: nn.Module, scale: float, tolerances: Tolerances
) -> list[Distance]:
    """Compare the ``.grad`` of two copies of one model; a missing gradient counts as zero.

    Args:
      dense: The model after the dense arm's backward.
      routed: The model after the routed arm's backward.
      scale: The loss scale that both backward passes used; it is divided out.
      tolerances: Gives the share below which a group is negligible.
    """
    routed_parameters = dict(routed.named_parameters())
    pairs = [
        (name, _unscaled(p.grad, scale), _unscaled(routed_parameters[name].grad, scale))
        for name, p in dense.named_parameters()
    ]
    distances = _compare(pairs)
    floor = tolerances.negligible_gradient * math.sqrt(sum(d.dense_norm**2 for d in distances))
    return [
        d.model_copy(update={"is_negligible": d.dense_norm <= floor and d.dense_norm < math.inf})
        for d in distances
    ]


def compare_parameters(dense: nn.Module, routed: nn.Module) -> list[Distance]:
    """Compare the parameters of two copies of one model."""
    others = dict(routed.named_parameters())
    return _compare(
        (name, p.detach(), others[name].detach()) for name, p in dense.named_parameters()
    )


def compare_pruned_losses(
    dense: Sequence[ObservedLoss], routed: Sequence[ObservedLoss]
) -> PrunedLossDistances:
    """Compare the pruned losses of one batch in their order: their values, and what they are of.

    Log-probs and normalisers are compared at the sites inside the boundary. The values are those
    ahead of the weight that a recipe gives them, under which a wrong one might not show.

    Values that are equal in both arms and not finite count as equal; any other value that is not
    finite makes its distance NaN or infinite.

    Args:
      dense: What each pruned loss of the dense arm read and returned.
      routed: The same of the routed arm.
    """
    found = PrunedLossDistances([], [], [], [])
    if len(dense) != len(routed):
        found.problems.append(
            f"the dense arm computed {len(dense)} loss(es), the routed arm {len(routed)}"
        )
    for number, (first, second) in enumerate(zip(dense, routed), start=1):
        group = f"{first.kind} {number}"
        if first.value.shape != second.value.shape:
            found.problems.append(
                f"{group}: the dense arm returned shape {tuple(first.value.shape)}, "
                f"the routed arm {tuple(second.value.shape)}"
            )
        else:
            found.values.append(_distance(group, [_aligned(first.value, second.value)]))
        one, other = first.log_probs, second.log_probs
        if not torch.equal(one.live, other.live):
            found.problems.append(f"{group}: the arms retained different sites")
            continue
        selected = [
            _aligned(getattr(one, name)[one.live], getattr(other, name)[other.live])
            for name in ("target", "blank")
        ]
        log_z = _aligned(one.log_z[one.live], other.log_z[other.live])
        broken = sum(int((~(d.isfinite() & r.isfinite())).sum()) for d, r in (*selected, log_z))
        if broken:
            found.problems.append(
                f"{group}: {broken} log-prob(s) or log_z not finite and not equal in both arms"
            )
        found.log_probs.append(_distance(group, selected))
        found.log_z.append(_distance(group, [log_z]))
    return found


def _aligned(dense: Tensor, routed: Tensor) -> tuple[Tensor, Tensor]:
    """Both with zeros where they are equal and not finite, so that no infinities are subtracted."""
    same = (dense == routed) | (dense.isnan() & routed.isnan())
    same &= ~dense.isfinite()
    return dense.masked_fill(same, 0.0), routed.masked_fill(same, 0.0)


def _unscaled(gradient: Tensor | None, scale: float) -> Tensor | None:
    return None if gradient is None else gradient.detach().to(torch.float64) / scale


def _compare(pairs: Iterable[_Pair]) -> list[Distance]:
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, first, second in pairs:
        if first is None and second is None:
            continue
        like = first if first is not None else second
        assert like is not None
        dense = torch.zeros_like(like) if first is None else first
        routed = torch.zeros_like(like) if second is None else second
        groups.setdefault(group_of(name), []).append((dense, routed))
    return [_distance(group, tensors) for group, tensors in groups.items()]


def _distance(group: str, tensors: list[tuple[Tensor, Tensor]]) -> Distance:
    dense_square = routed_square = difference_square = dot = max_abs = max_scaled = 0.0
    for dense, routed in tensors:
        dense, routed = dense.to(torch.float64), routed.to(torch.float64)
        difference = routed - dense
        dense_square += dense.square().sum().item()
        routed_square += routed.square().sum().item()
        difference_square += difference.square().sum().item()
        dot += (dense * routed).sum().item()
        if difference.numel():
            max_abs = _larger(max_abs, difference.abs().max().item())
            scaled = difference.abs() / (1 + dense.abs())
            max_scaled = _larger(max_scaled, scaled.max().item())
    dense_norm, difference_norm = math.sqrt(dense_square), math.sqrt(difference_square)
    if dense_square == routed_square == 0.0:
        rel_l2, cosine = 0.0, 1.0
    elif dense_square == 0.0 or routed_square == 0.0:
        rel_l2, cosine = (math.inf if dense_square == 0.0 else 1.0), 0.0
    else:
        rel_l2 = difference_norm / dense_norm
        cosine = dot / (dense_norm * math.sqrt(routed_square))
    return Distance(
        group=group,
        max_abs=max_abs,
        max_scaled=max_scaled,
        rel_l2=rel_l2,
        cosine=cosine,
        dense_norm=dense_norm,
        difference_norm=difference_norm,
        is_negligible=False,
    )


def _larger(one: float, other: float) -> float:
    """Like ``max``, which would drop a NaN that comes second."""
    return other if math.isnan(other) else max(one, other)
