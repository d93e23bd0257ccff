"""Distances held against the configured bound and against the dense twin."""

import math

import pytest

from panda_icefall.runs.bounded import verdicts
from panda_icefall.runs.contract.result import ContractRecord
from panda_icefall.runs.contract.tolerances import Leeway
from panda_icefall.runs.records import Arm
from panda_icefall.runs.run_record import FinalParameters, Resumption, Trajectory


@pytest.mark.parametrize(
    ("twin", "distance", "holds"),
    [
        (0.0, 1e-6, True),
        (0.0, 1.1e-6, False),
        (1e-5, 4e-5, True),
        (1e-5, 4.1e-5, False),
        (0.0, math.nan, False),
        (1e-5, math.inf, False),
        (math.nan, 1e-6, True),
        (math.nan, 2e-6, False),  # a twin that went wrong excuses nothing
        (math.inf, 2e-6, False),
        (0.5, 1e-7, True),
        (0.5, 0.3, None),  # the twin has left the dense run behind: nothing can be said
        (0.5, 3.0, False),
    ],
)
def test_a_distance_holds_within_the_bound_or_four_times_the_twin(twin, distance, holds):
    assert Leeway(1e-6, twin).holds(distance) is holds


def test_a_bound_says_where_it_comes_from():
    assert str(Leeway(1e-6, 1e-8)) == "allowed 1e-06 as configured; dense twin at 1.0e-08"
    text = str(Leeway(1e-6, 1.1e-4))
    assert text == "allowed 4.4e-04 = 4 x 1.1e-04 (dense twin), configured 1e-06"
    assert str(Leeway(1e-6, math.nan)) == "allowed 1e-06 as configured; dense twin at nan"
    assert str(Leeway(1e-6, None)) == "configured 1e-06; no dense twin yet"


@pytest.mark.parametrize(
    ("distance", "holds"), [(1e-6, True), (2e-6, None), (math.nan, False), (math.inf, False)]
)
def test_without_a_twin_only_the_configured_bound_and_a_nan_are_answers(distance, holds):
    assert Leeway(1e-6, None).holds(distance) is holds


@pytest.mark.parametrize(
    ("steps", "largest", "holds"),
    [(30, 1e-7, True), (30, 1e-5, False), (29, 0.0, False), (0, math.nan, False)],
)
def test_a_trajectory_needs_every_step(steps, largest, holds):
    found = Trajectory(steps=steps, largest_relative_difference=largest)
    verdict = verdicts.trajectory_verdict(found, 30, Leeway(1e-6, 0.0))
    assert verdict.holds is holds
    assert f"{steps} of 30 steps" in verdict.text


def test_final_parameters_are_judged_by_their_bulk():
    found = FinalParameters(rel_l2=1e-3, twin_rel_l2=2e-3, bulk_rel_l2=5e-7)
    verdict = verdicts.final_parameters_verdict(found, Leeway(1e-6, 1e-7))
    assert verdict.holds is True
    assert "rel-L2 1.0e-03 (dense twin 2.0e-03)" in verdict.text
    assert "5.0e-07 without the 0.001% of elements" in verdict.text
    found.bulk_rel_l2 = math.nan
    assert verdicts.final_parameters_verdict(found, Leeway(1e-6, 1e-7)).holds is False


@pytest.mark.parametrize(
    ("steps", "names", "holds"), [(0, [], True), (2, [], False), (0, ["encoder.a"], False)]
)
def test_nothing_may_be_nan(steps, names, holds):
    verdict = verdicts.finite_verdict(
        Trajectory(steps=4, largest_relative_difference=0.0, non_finite=steps),
        FinalParameters(rel_l2=0.0, bulk_rel_l2=0.0, non_finite=names),
    )
    assert verdict.holds is holds
    assert verdict.text.startswith(f"{steps} step(s) and {len(names)} tensor(s)")


@pytest.mark.parametrize(
    ("is_bitwise", "rel_l2", "leeway", "holds"),
    [
        (True, 0.0, None, True),
        (False, 1e-9, None, False),
        (False, 0.0, None, False),
        (False, 1e-9, Leeway(1e-6, 0.0), True),
        (False, 1e-5, Leeway(1e-6, 0.0), False),
    ],
)
def test_a_resumed_run_has_the_same_bits_where_the_device_repeats(
    is_bitwise, rel_l2, leeway, holds
):
    found = Resumption(is_bitwise=is_bitwise, rel_l2=rel_l2, stopped_after=20, steps=30)
    verdict = verdicts.resume_verdict(found, leeway)
    assert verdict.holds is holds
    assert "stopped after 20 of 30 steps" in verdict.text


def distance(group, rel_l2, cosine=1.0, is_negligible=False):
    values = {"rel_l2": rel_l2, "cosine": cosine, "is_negligible": is_negligible}
    return {"group": group, **values}


def contract(rel_l2=3e-7, violations=(), **of_batch):
    batch = {
        "update": 1,
        "loss_dense": 1.0,
        "loss_routed": 1.0,
        "loss_rel": 1e-8,
        "gradients": [
            distance("encoder", rel_l2, cosine=0.99999999),
            distance("noise", 9.0, cosine=0.0, is_negligible=True),
        ],
        "log_probs": [distance("loss 1", 5e-8), distance("loss 2", 6e-8)],
        "log_z": [distance("loss 1", 2e-9)],
    }
    content = {
        "has_passed": not violations,
        "updates": 2,
        "tolerances": {
            "loss_rel": 1e-6,
            "gradient_rel_l2": 1e-5,
            "log_prob_rel_l2": 1e-6,
            "log_z_rel_l2": 2e-6,
            "parameter_rel_l2": 1e-6,
        },
        "batches": [{**batch, **of_batch}, batch],
        "parameters": [distance("encoder", 1e-5), distance("joiner", 0.0)],
        "parameters_twin": [distance("joiner", 9.0), distance("encoder", 2e-5)],
        "violations": list(violations),
    }
    return ContractRecord.model_validate(content)


def test_what_rounding_does_to_the_worst_gradient_is_told():
    content = contract(rel_l2=1.5e-5, gradients_twin=[distance("encoder", 2.1e-5)])
    text = verdicts.contract_verdict({0: content}).text
    words = "8.4e-05 = 4 x 2.1e-05 (rounding in the loss), configured 1e-05)"
    assert f"1.5e-05 in encoder (allowed {words}, cosine" in text


def test_the_contract_in_a_sentence():
    verdict = verdicts.contract_verdict({0: contract()})
    assert verdict.holds is True
    for words in (
        "2 of 2 batches",
        "selected log-probs rel-L2 6.0e-08 (bound 1e-06)",
        "log_z rel-L2 2.0e-09 (bound 2e-06)",
        "gradient rel-L2 3.0e-07 in encoder (bound 1e-05)",
        "updated parameters rel-L2 1.0e-05 in encoder "
        "(allowed 8.0e-05 = 4 x 2.0e-05 (dense twin), configured 1e-06)",
    ):
        assert words in verdict.text
    broken = verdicts.contract_verdict({0: contract("nan", ["update 1: no", "update 2: no"])})
    assert broken.holds is False
    assert "gradient rel-L2 nan in encoder" in broken.text
    assert "2 violation(s), the first: update 1: no" in broken.text


def test_a_violation_on_another_rank_is_a_violation():
    verdict = verdicts.contract_verdict({0: contract(), 1: contract(violations=["update 1: loss"])})
    assert verdict.holds is False
    assert "1 violation(s) on rank 1, the first: update 1: loss" in verdict.text


def test_a_contract_that_saw_no_batch():
    empty = contract(violations=["the check could not go on"])
    empty.batches, empty.parameters = [], []
    verdict = verdicts.contract_verdict({0: empty})
    assert verdict.holds is False
    assert "0 of 2 batches" in verdict.text


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
    verdict = verdicts.transducer_loss_verdict(Arm(counters={**counters, **changes}))
    assert verdict.holds is holds
    assert words in verdict.text
