"""Distances between gradients against figures worked out by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from panda_icefall.runs.contract.comparison import compare_gradients, compare_parameters, group_of
from panda_icefall.runs.contract.tolerances import tolerances_for

BOUNDS = tolerances_for(torch.float32)


@pytest.fixture
def models():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 1), "joiner": nn.Linear(2, 1)})
    return model, copy.deepcopy(model)


def set_gradients(model, encoder, joiner):
    model["encoder"].weight.grad = None if encoder is None else torch.tensor([encoder])
    model["joiner"].weight.grad = None if joiner is None else torch.tensor([joiner])


def test_only_the_joiners_parameters_are_groups_of_their_own():
    assert group_of("encoder.layers.0.weight") == "encoder"
    assert group_of("joiner.output_linear.bias") == "joiner.output_linear.bias"
    assert group_of("scale") == "scale"


def test_distances_are_taken_over_a_whole_group_with_the_scale_divided_out(models):
    dense, routed = models
    set_gradients(dense, [6.0, 8.0], [2.0, 0.0])
    set_gradients(routed, [6.0, 6.0], [0.0, 2.0])
    encoder, joiner = compare_gradients(dense, routed, 2.0, BOUNDS)
    assert (encoder.group, joiner.group) == ("encoder", "joiner.weight")
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
    assert distances["joiner.bias"].max_abs == pytest.approx(1.0)
    assert distances["encoder"].rel_l2 == distances["joiner.weight"].rel_l2 == 0.0
