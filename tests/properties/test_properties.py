"""Some hundred random examples of every loss; `scripts/run_properties.py` draws 10,000.

PANDA_PROPERTY_SEED chooses others than those that are always the same.
"""

import os

import pytest
from drawn import runs
from drawn.lattices import lengths_with_a_path
from lattice_oracle import LossKind

SEED = int(os.environ.get("PANDA_PROPERTY_SEED", "20"))
EXAMPLES = 300
# Those in which the largest tensor is looked at.
WATCHED = {"full lattice", "pruned lattice", "k2's pruned loss", "k2's simple loss",
           "torch's CTC loss", "selected log-probs"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "examples"), runs.split(EXAMPLES, EXAMPLES), ids=str)
def test_every_example_equals_the_oracle_is_routed_and_stays_in_its_workspace(name, examples):
    found = runs.run(name, examples, SEED)
    assert not found.failure, f"PANDA_PROPERTY_SEED={SEED}\n{found.failure}"
    assert found.examples >= examples * 0.9
    assert (found.facts.get("watched", 0) > 0) == (name in WATCHED)


def test_a_failed_example_is_told_with_what_was_drawn(monkeypatch):
    def check(case):
        assert case.classes < 40

    strategy, _ = runs.PROPERTIES["torch's CTC loss"]
    monkeypatch.setitem(runs.PROPERTIES, "torch's CTC loss", (strategy, check))
    found = runs.run("torch's CTC loss", 50, SEED)
    assert "assert 40 < 40" in found.failure


@pytest.mark.parametrize("examples", [1, 9, 300, 10_000])
def test_examples_are_shared_out_and_every_property_has_some(examples):
    pieces = runs.split(examples, 200)
    assert {name for name, _ in pieces} == set(runs.PROPERTIES)
    assert all(1 <= count <= 200 for _, count in pieces)
    assert sum(count for _, count in pieces) == max(examples, len(runs.PROPERTIES))


@pytest.mark.parametrize(
    ("kind", "has", "has_not"),
    [
        (LossKind(), (1, 4), (0, 0)),
        (LossKind(rnnt_type="modified"), (3, 3), (2, 3)),
        (LossKind(rnnt_type="one_sym_per_frame"), (4, 3), (3, 3)),
        (LossKind(durations=(0, 2)), (2, 3), (3, 1)),
        (LossKind(durations=(1, 3)), (3, 1), (1, 1)),
    ],
)
def test_lengths_that_are_drawn_have_a_path(kind, has, has_not):
    lengths = lengths_with_a_path(kind, 6, 4)
    assert has in lengths
    assert has_not not in lengths
