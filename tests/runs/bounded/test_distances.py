"""Distances between arms, and verdicts against their bounds."""

import math

import pytest
import torch

from panda_icefall.runs.bounded import judgement


def arm(*losses):
    return {"steps": [{"step": n, "loss": loss} for n, loss in enumerate(losses, 1)]}


def test_trajectories_are_compared_step_by_step():
    found = judgement.compare_trajectories(
        arm(10.0, 5.0, 4.0), arm(10.0, 5.5, 4.0), arm(10.0, 5.0, 3.9), 1e-6
    )
    assert found["steps"] == 3
    assert found["largest_relative_difference"] == pytest.approx(0.1)
    assert found["step_of_largest"] == 2
    assert found["first_relative_difference"] == 0.0
    assert found["twin_largest_relative_difference"] == pytest.approx(0.025)
    assert found["bound"] == pytest.approx(0.1)
    assert found["non_finite"] == 0


@pytest.mark.parametrize(
    ("routed", "twin", "holds"),
    [
        ((10.0, 5.0), (10.0, 5.0), True),
        ((10.0, 5.0 * (1 + 9e-7)), (10.0, 5.0), True),
        ((10.0, 5.0 * (1 + 3e-6)), (10.0, 5.0), False),
        ((10.0, 5.0 * (1 + 3e-6)), (10.0, 5.0 * (1 + 2e-6)), True),
        ((10.0, math.nan), (10.0, 5.0), False),
        ((10.0, 5.0 * (1 + 3e-6)), (10.0, math.nan), False),
        ((10.0, 5.0 * (1 + 3e-6)), (10.0, math.inf), False),
        ((10.0,), (10.0,), False),  # a step is missing
        ((), (), False),
    ],
)
def test_a_trajectory_holds_within_the_bound_or_four_times_the_twin(routed, twin, holds):
    found = judgement.compare_trajectories(arm(10.0, 5.0), arm(*routed), arm(*twin), 1e-6)
    assert judgement.trajectory_verdict(found, 2)["holds"] is holds


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
    found = judgement.compare_final_parameters(
        parameters(), parameters(a=torch.tensor([0.0, 1.3])), parameters(b=0.26), 1e-6
    )
    assert found["rel_l2"] == pytest.approx(0.1)
    assert found["twin_rel_l2"] == pytest.approx(0.02, rel=1e-5)
    assert found["bulk_rel_l2"] == found["rel_l2"]  # too few elements to leave one out
    assert found["bound"] == pytest.approx(0.08, rel=1e-5)
    groups = {group["group"]: group for group in found["groups"]}
    assert set(groups) == {"encoder", "joiner"}
    assert groups["encoder"]["rel_l2"] == pytest.approx(0.26)
    assert groups["encoder"]["max_abs"] == pytest.approx(1.3)
    assert groups["joiner"]["rel_l2"] == 0.0
    (largest,) = found["largest_parameters"]
    assert largest["name"] == "encoder.a"
    assert largest["share"] == 1.0
    assert judgement.final_parameters_verdict(found)["holds"] is False


def test_single_elements_that_took_another_step_do_not_decide():
    dense = {"encoder.weight": torch.ones(400, 1000), "scale": torch.ones(())}
    routed = {name: value.clone() for name, value in dense.items()}
    routed["encoder.weight"] += 1e-7
    routed["encoder.weight"][0, :4] = 3.0
    found = judgement.compare_final_parameters(dense, routed, dense, 1e-6)
    assert found["rel_l2"] == pytest.approx(4 / 400_001**0.5, rel=1e-3)
    assert found["bulk_rel_l2"] == pytest.approx(1.19e-7, rel=1e-2)  # 1e-7, rounded to an ulp
    assert judgement.final_parameters_verdict(found)["holds"] is True
    routed["encoder.weight"][0, 4] = 3.0  # one more than 0.001 %
    found = judgement.compare_final_parameters(dense, routed, dense, 1e-6)
    assert judgement.final_parameters_verdict(found)["holds"] is False


def test_equal_parameters_hold_without_a_twin_to_lean_on():
    found = judgement.compare_final_parameters(parameters(), parameters(), parameters(), 1e-6)
    assert (found["rel_l2"], found["bound"], found["largest_parameters"]) == (0.0, 1e-6, [])
    assert judgement.final_parameters_verdict(found)["holds"] is True


def test_nan_parameters_do_not_hold():
    found = judgement.compare_final_parameters(
        parameters(), parameters(b=math.nan), parameters(), 1e-6
    )
    assert judgement.final_parameters_verdict(found)["holds"] is False
    assert judgement.finite_verdict({"non_finite": 0}, found)["holds"] is False


def test_a_twin_with_nan_excuses_nothing():
    found = judgement.compare_final_parameters(
        parameters(), parameters(b=1e-3), parameters(b=math.nan), 1e-6
    )
    assert found["bound"] == 1e-6
    assert judgement.final_parameters_verdict(found)["holds"] is False


def test_a_loss_that_is_not_finite_is_counted_once_per_step():
    found = judgement.compare_trajectories(
        arm(1.0, math.nan, 2.0), arm(1.0, math.inf, 2.0), arm(math.nan, 1.0, 2.0), 1e-6
    )
    assert found["non_finite"] == 2
    verdict = judgement.finite_verdict(found, {"non_finite": 0})
    assert verdict["holds"] is False
    assert verdict["text"].startswith("2 step(s) and 0 parameter(s)")


@pytest.mark.parametrize(
    ("change", "is_bitwise", "holds"),
    [
        ({}, True, True),
        ({"b": 1e-5}, False, True),
        ({"b": 1e-2}, False, False),
        ({"steps": 1}, False, True),  # a counter of another value: not the same bits, and told
    ],
)
def test_resumed_parameters(change, is_bitwise, holds):
    found = judgement.compare_resumed(parameters(), parameters(**change), 20, 30)
    assert found["is_bitwise"] is is_bitwise
    verdict = judgement.resume_verdict(found, 1e-6, 1e-6)
    assert verdict["holds"] is holds
    assert ("the same bits" in verdict["text"]) is is_bitwise
    assert "stopped after 20 of 30 steps" in verdict["text"]


def contract(rel_l2=3e-7, violations=()):
    gradient = {"group": "encoder", "rel_l2": rel_l2, "cosine": 0.99999999, "is_negligible": False}
    noise = {"group": "noise", "rel_l2": 9.0, "cosine": 0.0, "is_negligible": True}
    return {
        "has_passed": not violations,
        "updates": 2,
        "tolerances": {
            "loss_rel": 1e-6,
            "gradient_rel_l2": 1e-5,
            "log_prob_rel_l2": 1e-6,
            "log_z_rel_l2": 2e-6,
        },
        "batches": [
            {
                "loss_rel": 1e-8,
                "gradients": [gradient, noise],
                "log_probs": [{"rel_l2": 5e-8}, {"rel_l2": 6e-8}],
                "log_z": [{"rel_l2": 2e-9}],
            }
        ]
        * 2,
        "violations": list(violations),
    }


def test_the_contract_in_a_sentence():
    verdict = judgement.contract_verdict(contract())
    assert verdict["holds"] is True
    assert "2 of 2 batches" in verdict["text"]
    assert "gradient rel-L2 3.0e-07 in encoder (bound 1e-05)" in verdict["text"]
    assert "selected log-probs rel-L2 6.0e-08 (bound 1e-06)" in verdict["text"]
    assert "log_z rel-L2 2.0e-09 (bound 2e-06)" in verdict["text"]
    broken = judgement.contract_verdict(contract("nan", ["update 1: no", "update 2: no"]))
    assert broken["holds"] is False
    assert "gradient rel-L2 nan in encoder" in broken["text"]
    assert "2 violation(s), the first: update 1: no" in broken["text"]


def test_a_contract_that_saw_no_batch():
    empty = {**contract(violations=["the check could not go on"]), "batches": []}
    verdict = judgement.contract_verdict(empty)
    assert verdict["holds"] is False
    assert "0 of 2 batches" in verdict["text"]


@pytest.mark.parametrize(
    ("changes", "holds", "words"),
    [
        ({}, True, "3 losses routed, 0 not; materialised: nothing; 80% of the sites evaluated"),
        ({"adjoint_mass": 0.0}, False, "weight 0 in every step"),
        ({"losses_dense": 1, "materialised": {"cumsum": 2}}, False, "1 not; materialised: cumsum"),
        ({"losses_routed": 0, "sites": 0}, False, "0 losses routed"),
    ],
)
def test_a_run_in_which_the_pruned_loss_took_no_part_does_not_hold(changes, holds, words):
    counters = {
        "losses_routed": 3,
        "losses_dense": 0,
        "materialised": {},
        "sites": 100,
        "sites_evaluated": 80,
        "sites_backward": 60,
        "adjoint_mass": 5.0,
    }
    verdict = judgement.pruned_loss_verdict({"counters": {**counters, **changes}})
    assert verdict["holds"] is holds
    assert words in verdict["text"]
