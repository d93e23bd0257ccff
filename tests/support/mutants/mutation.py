"""What a planted bug is, and whether what is there to catch it does."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from drawn import runs

Plant = Callable[[pytest.MonkeyPatch], None]

# So many examples pass without the bug; the first that fails with it ends the search.
EXAMPLES = 400
SEED = 14


@dataclass(frozen=True)
class Mutation:
    """One bug.

    Attributes:
      where: the function that is wrong.
      plant: makes it so.
      caught_by: a property of ``drawn.runs``, or a numerical gate by its name.
      gate: that gate, which raises AssertionError where it is not passed; None: of a property.
    """

    name: str
    where: str
    plant: Plant
    caught_by: str
    gate: Callable[[], None] | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a bug was caught, with how many examples, in how many seconds."""

    mutation: Mutation
    is_caught: bool
    examples: int
    seconds: float
    text: str


def verdict(mutation: Mutation, examples: int = EXAMPLES) -> Verdict:
    """Plant the bug and look whether an assertion fails."""
    started = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        mutation.plant(patch)
        if mutation.gate is None:
            found = runs.run(mutation.caught_by, examples, SEED, shrinks=False)
            text, tried = found.failure, found.examples + bool(found.failure)
        else:
            text, tried = _failure_of(mutation.gate), 1
    # Anything else than a failed assertion is no test of numbers or counters.
    is_caught = "AssertionError" in text
    return Verdict(mutation, is_caught, tried, time.perf_counter() - started, text)


def broken_without_a_bug(verdicts: Sequence[Verdict]) -> list[str]:
    """Properties and gates that fail as the package is, on the examples that bugs were caught by.

    There must be none.
    """
    most = Counter[str]()
    gates = {found.mutation.caught_by: found.mutation.gate for found in verdicts}
    for found in verdicts:
        most[found.mutation.caught_by] = max(most[found.mutation.caught_by], found.examples)
    texts = {
        name: runs.run(name, most[name], SEED).failure if gate is None else _failure_of(gate)
        for name, gate in gates.items()
    }
    return [f"{name}: {text}" for name, text in texts.items() if text]


def _failure_of(gate: Callable[[], None]) -> str:
    try:
        gate()
    except AssertionError as error:
        return f"AssertionError: {error}"
    return ""
