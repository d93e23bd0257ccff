"""Distances of gradients, parameters and log-probs against figures worked out by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from panda_icefall.losses.sites import SiteLogProbs
from panda_icefall.runs.contract.comparison import (
    compare_gradients,
    compare_parameters,
    compare_pruned_losses,
    group_of,
)
from panda_icefall.runs.contract.passes import ObservedLoss
from panda_icefall.runs.contract.tolerances import tolerances_for

BOUNDS = tolerances_for(torch.float32)


@pytest.fixture
def models():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 1), "joiner": nn.Linear(2, 1)})
    return model, copy.deepcopy(model)


def set_gradients(model, encoder, joiner):
    model["encoder"].weight.grad = None if encoder is None else torch.tensor([encoder])
    model["joiner"].weight.grad = None if joiner is None else torch.tensor([joiner])


def test_the_group_of_a_parameter_is_its_top_level_module():
    assert group_of("encoder.layers.0.weight") == "encoder"
    assert group_of("joiner.output_linear.bias") == "joiner"
    assert group_of("scale") == "scale"


def test_distances_are_taken_over_a_whole_group_with_the_scale_divided_out(models):
    dense, routed = models
    set_gradients(dense, [6.0, 8.0], [2.0, 0.0])
    set_gradients(routed, [6.0, 6.0], [0.0, 2.0])
    encoder, joiner = compare_gradients(dense, routed, 2.0, BOUNDS)
    assert (encoder.group, joiner.group) == ("encoder", "joiner")
    assert (encoder.dense_norm, encoder.difference_norm, encoder.max_abs) == (5.0, 1.0, 1.0)
    assert encoder.rel_l2 == pytest.approx(0.2)
    assert encoder.cosine == pytest.approx((3 * 3 + 4 * 3) / (5 * math.sqrt(18)))
    assert joiner.cosine == 0.0
    assert not encoder.is_negligible


def test_a_missing_gradient_counts_as_zero_and_two_missing_are_no_group(models):
    dense, routed = models
    set_gradients(dense, [3.0, 4.0], None)
    set_gradients(routed, None, None)
    (encoder,) = compare_gradients(dense, routed, 1.0, BOUNDS)
    assert (encoder.rel_l2, encoder.cosine, encoder.difference_norm) == (1.0, 0.0, 5.0)


def test_a_gradient_that_only_the_routed_arm_has_is_infinitely_far(models):
    dense, routed = models
    set_gradients(dense, None, [1.0, 0.0])
    set_gradients(routed, [1.0, 0.0], [1.0, 0.0])
    encoder, joiner = compare_gradients(dense, routed, 1.0, BOUNDS)
    assert encoder.rel_l2 == math.inf
    assert (joiner.rel_l2, joiner.cosine) == (0.0, 1.0)


def test_a_group_below_the_rounding_of_the_whole_is_negligible(models):
    dense, routed = models
    set_gradients(dense, [1e-8, 0.0], [1.0, 0.0])
    set_gradients(routed, [-1e-8, 0.0], [1.0, 0.0])
    encoder, joiner = compare_gradients(dense, routed, 1.0, BOUNDS)
    assert encoder.is_negligible
    assert not joiner.is_negligible
    assert encoder.difference_norm == pytest.approx(2e-8)


def test_a_nan_is_never_dropped(models):
    dense, routed = models
    set_gradients(dense, [1.0, 2.0], [1.0, 0.0])
    set_gradients(routed, [math.nan, 2.0], [1.0, 0.0])
    encoder, _ = compare_gradients(dense, routed, 1.0, BOUNDS)
    assert math.isnan(encoder.rel_l2)
    assert math.isnan(encoder.max_abs)
    assert not encoder.is_negligible


def test_parameters_are_compared_by_group(models):
    dense, routed = models
    with torch.no_grad():
        routed["joiner"].bias.add_(1.0)
    distances = {d.group: d for d in compare_parameters(dense, routed)}
    assert distances["joiner"].max_abs == pytest.approx(1.0)
    norm = sum(p.square().sum() for p in dense["joiner"].parameters()).sqrt().item()
    assert distances["joiner"].rel_l2 == pytest.approx(1.0 / norm)
    assert distances["encoder"].rel_l2 == 0.0


def observed(target, blank, log_z, live=(True, True, False), value=1.0):
    tensors = [torch.tensor([[list(map(float, v))]]) for v in (target, blank, log_z)]
    log_probs = SiteLogProbs(*tensors, torch.tensor([[list(live)]]))
    return ObservedLoss("pruned loss", torch.tensor(value), log_probs)


def test_log_probs_are_compared_at_live_sites_only_and_loss_by_loss():
    dense = observed([-3, 0, 7], [-4, 0, 7], [5, 0, 7])
    routed = observed([-3, 0, math.nan], [-3, 0, -9], [5, 1, 0])
    found = compare_pruned_losses([dense, dense], [routed, dense])
    assert found.problems == []
    first, second = found.log_probs
    assert (first.group, second.group) == ("pruned loss 1", "pruned loss 2")
    assert (first.max_abs, first.dense_norm, first.difference_norm) == (1.0, 5.0, 1.0)
    assert first.rel_l2 == pytest.approx(0.2)
    assert first.cosine == pytest.approx((9 + 12) / (5 * math.sqrt(18)))
    assert second.rel_l2 == 0.0
    assert found.log_z[0].rel_l2 == pytest.approx(0.2)
    assert first.max_scaled == pytest.approx(1 / (1 + 4))
    assert found.log_z[0].max_scaled == 1.0


@pytest.mark.parametrize(
    ("dense", "routed", "expected"),
    [(200.0, 201.0, 1 / 200), ([3.0, 4.0], [3.0, 3.0], 0.2), ([math.inf, 5.0], [math.inf, 5.0], 0)],
)
def test_the_values_of_pruned_losses_are_compared_reduced_or_not(dense, routed, expected):
    sites = ([-1, -2, 0], [-1, -1, 0], [1, 1, 0])
    found = compare_pruned_losses([observed(*sites, value=dense)], [observed(*sites, value=routed)])
    assert found.problems == []
    (value,) = found.values
    assert value.group == "pruned loss 1"
    assert value.rel_l2 == pytest.approx(expected)


def test_a_value_of_another_shape_or_a_lone_infinity_does_not_pass():
    sites = ([-1, -2, 0], [-1, -1, 0], [1, 1, 0])
    dense, routed = (observed(*sites, value=value) for value in ([1.0, 2.0], 3.0))
    found = compare_pruned_losses([dense], [routed])
    assert found.values == []
    assert found.problems == ["pruned loss 1: the dense arm returned shape (2,), the routed arm ()"]
    infinite = observed(*sites, value=[math.inf, 2.0])
    (value,) = compare_pruned_losses([dense], [infinite]).values
    assert not value.rel_l2 <= 1


def test_what_is_not_finite_is_fine_only_where_both_arms_agree():
    dense = observed([-math.inf, -2, 0], [math.nan, -1, 0], [1, 1, 0])
    found = compare_pruned_losses([dense], [dense])
    assert found.problems == []
    assert found.log_probs[0].rel_l2 == 0.0
    assert found.log_probs[0].dense_norm == pytest.approx(math.sqrt(5))
    routed = observed([math.inf, -2, 0], [-1, -1, 0], [math.nan, 1, 0])
    found = compare_pruned_losses([dense], [routed])
    (problem,) = found.problems
    assert problem == (
        "pruned loss 1: 3 log-prob(s) or log_z not finite and not equal in both arms"
    )
    assert not found.log_probs[0].rel_l2 <= 1
    assert not found.log_z[0].rel_l2 <= 1
    assert math.isnan(found.log_z[0].max_scaled)


def test_losses_that_do_not_pair_are_a_problem_in_words():
    dense = observed([-1, -2, 0], [-1, -1, 0], [1, 1, 0])
    other = observed([-1, -2, 0], [-1, -1, 0], [1, 1, 0], live=(True, False, False))
    found = compare_pruned_losses([dense, dense], [other])
    assert found.problems == [
        "the dense arm computed 2 loss(es), the routed arm 1",
        "pruned loss 1: the arms retained different sites",
    ]
    assert found.log_probs == found.log_z == []


def test_a_batch_of_which_no_site_is_live_has_no_distance():
    dead = observed([1, 2, 3], [1, 2, 3], [1, 2, 3], live=(False, False, False))
    found = compare_pruned_losses([dead], [dead])
    assert (found.log_probs[0].rel_l2, found.log_probs[0].cosine) == (0.0, 1.0)
