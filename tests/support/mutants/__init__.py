"""Bugs planted into the package, each of which a property or a numerical gate must catch."""

from mutants.losses import LOSSES
from mutants.mutation import EXAMPLES, Mutation, Verdict, broken_without_a_bug, verdict
from mutants.routing import ROUTING
from mutants.tiles import TILES

__all__ = ["EXAMPLES", "MUTATIONS", "Mutation", "Verdict", "broken_without_a_bug", "verdict"]

MUTATIONS = [*TILES, *LOSSES, *ROUTING]
