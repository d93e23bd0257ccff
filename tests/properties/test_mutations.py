"""Planted bugs are caught: here most of them, by `scripts/mutations.py` all, with a table."""

import mutants
import pytest
from mutants import MUTATIONS

# They take dozens of examples: those that fail are rare.
FOR_THE_COMMAND = {
    "a class selected twice, once", "running sum not rescaled", "adjoint of log_z forgotten",
    "final blank forgotten", "constrained as modified", "FastEmit on blank arcs",
    "HAT's labels share with the blank", "modified never routed", "constrained never routed",
    "temperature dropped", "log_softmax dropped where it counts", "dropout drawn again",
}  # fmt: skip
HERE = [mutation for mutation in MUTATIONS if mutation.name not in FOR_THE_COMMAND]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", HERE, ids=lambda mutation: mutation.name)
def test_a_planted_bug_is_caught(mutation):
    found = mutants.verdict(mutation)
    assert found.is_caught, f"{mutation.where}: {found.text or 'passes'}"


def test_there_are_enough_and_each_is_one_of_a_kind():
    names = [mutation.name for mutation in MUTATIONS]
    assert len(names) == len(set(names)) >= 20
    assert set(names) >= FOR_THE_COMMAND
