"""The start of a control run as a hook: every parameter one ulp off."""

import contextlib
from collections.abc import Iterator

from panda_icefall.runs.contract.rounding import perturb_by_one_ulp
from panda_icefall.runs.hooks.hook import Hook
from panda_icefall.runs.recipe_calls import Epoch

__all__ = ["PerturbedStart"]


class PerturbedStart(Hook):
    """Perturbs the model once, before anything is trained."""

    def __init__(self) -> None:
        self._is_due = True

    @contextlib.contextmanager
    def epoch(self, epoch: Epoch) -> Iterator[None]:
        """The first epoch's model, as the recipe has built or loaded it."""
        if self._is_due:
            perturb_by_one_ulp(epoch.model)
            self._is_due = False
        yield
