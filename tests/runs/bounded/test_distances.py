"""Distances between the arms of a bounded run."""

import math

import pytest
import torch

from panda_icefall.runs.bounded.distances import (
    compare_final_parameters,
    compare_resumed,
    compare_trajectories,
)
from panda_icefall.runs.records import Arm, Step


def arm(*losses):
    return Arm(steps=[Step(step=n, loss=loss) for n, loss in enumerate(losses, 1)])


def test_trajectories_are_compared_step_by_step():
    found = compare_trajectories(arm(10.0, 5.0, 4.0), arm(10.0, 5.5, 4.0), arm(10.0, 5.0, 3.9))
    assert found.steps == 3
    assert found.largest_relative_difference == pytest.approx(0.1)
    assert found.step_of_largest == 2
    assert found.first_relative_difference == 0.0
    assert found.twin_largest_relative_difference == pytest.approx(0.025)
    assert found.non_finite == 0


def test_a_loss_that_is_not_finite_is_counted_once_per_step():
    found = compare_trajectories(
        arm(1.0, math.nan, 2.0), arm(1.0, math.inf, 2.0), arm(math.nan, 1.0, 2.0)
    )
    assert found.non_finite == 2
    assert math.isnan(found.largest_relative_difference)
    assert math.isnan(found.twin_largest_relative_difference)


def test_runs_without_a_step_are_infinitely_little_known():
    found = compare_trajectories(arm(), arm(), arm())
    assert (found.steps, found.step_of_largest) == (0, None)
    assert math.isnan(found.largest_relative_difference)


def test_a_twin_that_ended_early_bounds_what_is_compared_and_one_that_never_ran_does_not():
    dense, routed = arm(10.0, 5.0, 4.0), arm(10.0, 5.5, 4.0)
    found = compare_trajectories(dense, routed, arm(10.1))
    assert (found.steps, found.largest_relative_difference) == (1, 0.0)
    assert found.twin_largest_relative_difference == pytest.approx(0.01)
    found = compare_trajectories(dense, routed, None)
    assert (found.steps, found.step_of_largest) == (3, 2)
    assert found.twin_largest_relative_difference is None


def parameters(**changes):
    """An encoder of norm 5 and a joiner weight of norm 12, so 13 together; and a counter."""
    values = {
        "encoder.a": torch.tensor([3.0, 0.0]),
        "encoder.b": torch.tensor([4.0]),
        "joiner.output_linear.weight": torch.tensor([[12.0]]),
        "encoder.steps": torch.tensor(5),
    }
    return {name: value + changes.get(name.split(".")[1], 0) for name, value in values.items()}


def test_final_parameters_are_compared_as_a_whole_and_by_group():
    found = compare_final_parameters(
        parameters(), parameters(a=torch.tensor([0.0, 1.3])), parameters(b=0.26)
    )
    assert found.rel_l2 == pytest.approx(0.1)
    assert found.twin_rel_l2 == pytest.approx(0.02, rel=1e-5)
    assert found.bulk_rel_l2 == found.rel_l2  # too few elements to leave one out
    groups = {group.group: group for group in found.groups}
    assert set(groups) == {"encoder", "joiner"}
    assert groups["encoder"].rel_l2 == pytest.approx(0.26)
    assert groups["encoder"].max_abs == pytest.approx(1.3)
    assert groups["joiner"].rel_l2 == 0.0
    (largest,) = found.largest_parameters
    assert largest.name == "encoder.a"
    assert largest.share == 1.0


def test_single_elements_that_took_another_step_are_left_out_of_the_bulk():
    dense = {"encoder.weight": torch.ones(400, 1000), "scale": torch.ones(())}
    routed = {name: value.clone() for name, value in dense.items()}
    routed["encoder.weight"] += 1e-7
    routed["encoder.weight"][0, :4] = 3.0
    found = compare_final_parameters(dense, routed, dense)
    assert found.rel_l2 == pytest.approx(4 / 400_001**0.5, rel=1e-3)
    assert found.bulk_rel_l2 == pytest.approx(1.19e-7, rel=1e-2)  # 1e-7, rounded to an ulp
    routed["encoder.weight"][0, 4] = 3.0  # one more than 0.001 %
    assert compare_final_parameters(dense, routed, dense).bulk_rel_l2 > 1e-3


def test_without_a_twin_its_figures_are_left_open():
    changed = parameters(a=torch.tensor([0.0, 1.3]))
    found = compare_final_parameters(parameters(), changed, None)
    assert found.rel_l2 == pytest.approx(0.1)
    rows = [found, *found.groups, *found.largest_parameters]
    assert {row.twin_rel_l2 for row in rows} == {None}
    assert found.twin_bulk_rel_l2 is None


def test_equal_parameters_are_nowhere_apart():
    found = compare_final_parameters(parameters(), parameters(), parameters())
    assert (found.rel_l2, found.bulk_rel_l2, found.largest_parameters) == (0.0, 0.0, [])
    assert found.non_finite == []


def test_nan_is_named_and_never_dropped():
    found = compare_final_parameters(parameters(), parameters(b=math.nan), parameters())
    assert found.non_finite == ["encoder.b"]
    assert math.isnan(found.rel_l2)
    assert math.isnan(found.bulk_rel_l2)


@pytest.mark.parametrize(
    ("change", "is_bitwise", "rel_l2"),
    [
        ({}, True, 0.0),
        ({"b": 0.13}, False, 0.01),
        ({"steps": 1}, False, 0.0),  # a counter of another value: no distance, but other bits
    ],
)
def test_resumed_parameters(change, is_bitwise, rel_l2):
    found = compare_resumed(parameters(), parameters(**change), 20, 30)
    assert found.is_bitwise is is_bitwise
    assert found.rel_l2 == pytest.approx(rel_l2)
    assert (found.stopped_after, found.steps) == (20, 30)
