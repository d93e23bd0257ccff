"""All properties by name, and the run of one of them over so many examples of a seed."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

import panda_icefall
from drawn import ctc, full_recipes, hosts, log_probs, logits, own_loop, rounding

# Name -> the examples, and what each of them has to pass; together they are of every loss.
PROPERTIES: dict[str, tuple[Any, Any]] = {
    "full lattice": (own_loop.cases(is_pruned=False), own_loop.check),
    "pruned lattice": (own_loop.cases(is_pruned=True), own_loop.check),
    "k2's pruned loss": (hosts.pruned_cases(), hosts.check_pruned),
    "k2's simple loss": (hosts.simple_cases(), hosts.check_simple),
    "torch's CTC loss": (ctc.cases(), ctc.check),
    "full-lattice recipes": (full_recipes.cases(), full_recipes.check),
    "selected log-probs": (log_probs.cases(), log_probs.check),
    "half and single precision": (rounding.cases(), rounding.check),
    "losses of logits": (logits.cases(), logits.check),
}
# All of whose examples are in one apply(), which looks for other names of what it replaces.
APPLIED = {"k2's pruned loss", "k2's simple loss", "torch's CTC loss"}
# Parts of 100, by how much each of them has to get wrong.
SHARES = dict(zip(PROPERTIES, (24, 14, 16, 12, 10, 6, 10, 5, 3)))


@dataclass
class Run:
    """What came out of one property.

    Attributes:
      examples: that passed, those that hypothesis made smaller not counted.
      facts: counts of what was looked at, summed over the examples.
      failure: the smallest example that failed and its traceback, or "".
    """

    name: str
    seed: int
    examples: int = 0
    seconds: float = 0.0
    facts: dict[str, int] = field(default_factory=dict)
    failure: str = ""


def run(name: str, examples: int, with_seed: int, *, shrinks: bool = True) -> Run:
    """Draw examples until there are so many, or one fails."""
    strategy, check = PROPERTIES[name]
    result, facts = Run(name, with_seed), Counter[str]()
    phases = (Phase.generate, Phase.shrink) if shrinks else (Phase.generate,)

    @seed(with_seed)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=phases, print_blob=False,
        suppress_health_check=[*HealthCheck], report_multiple_bugs=False,
    )  # fmt: skip
    @given(strategy)
    def example(case: Any) -> None:
        facts.update(check(case))
        result.examples += 1

    started = time.perf_counter()
    if name in APPLIED:
        panda_icefall.apply()
    try:
        example()
    except Exception:
        result.failure = traceback.format_exc()
    finally:
        panda_icefall.revert()
    result.seconds = time.perf_counter() - started
    result.facts = dict(facts)
    return result


def split(examples: int, most: int, names: Sequence[str] = ()) -> list[tuple[str, int]]:
    """So many examples shared out over the properties, in pieces of at most ``most``; each has one.

    One piece of each property after the other, so that all of them have some early on.
    """
    shares = {name: SHARES[name] for name in names or PROPERTIES}
    left = {n: max(1, round(examples * s / sum(shares.values()))) for n, s in shares.items()}
    first = next(iter(left))
    left[first] = max(1, left[first] + examples - sum(left.values()))
    pieces = []
    while left:
        for name in [*left]:
            pieces.append((name, min(most, left[name])))
            left[name] -= pieces[-1][1]
            if not left[name]:
                del left[name]
    return pieces
