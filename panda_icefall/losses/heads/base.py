"""What a head is: which log-probs of a site's classes a loss reads, and how they are normalised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from panda_icefall.normalizer import RowLogits
from panda_icefall.normalizer.op import Selected

# ``panda_icefall.normalizer.op.select`` of logits, ids, their mask and ``read``; all else is given.
Select = Callable[..., Selected]


class HeadLogProbs(NamedTuple):
    """What a head makes of its sites, in nats; all of the sites' shape, but where it says more.

    Attributes:
      target: log-prob of the next symbol.
      blank: log-prob of the termination symbol.
      log_z: the normaliser.
      others: log-probs of what only this head has, big blanks or durations, ``[..., n]``; None: it
        has nothing else.
      cost_share: as of ``panda_icefall.normalizer.op.Selected``; None: there is no clamp.
    """

    target: Tensor
    blank: Tensor
    log_z: Tensor
    others: Tensor | None = None
    cost_share: Tensor | None = None


class Head(ABC):
    """From logits, or from what computes them, to the log-probs that a lattice reads.

    ``targets`` are the next symbols, int64 in ``[0, C)``, one for each site; ``blank`` is the
    termination symbol.

    Attributes:
      takes_clamp: whether ``of_rows`` gives a cost share, so that the gradient of the logits can be
        clipped.
    """

    takes_clamp = True

    def token_classes(self, classes: int) -> int:
        """How many of the logits' classes symbols and blank are among: the first ones."""
        return classes

    def check(self, blank: int, classes: int) -> None:  # noqa: B027
        """Refuse what the head is not defined for.

        Raises:
          ValueError: the blank or the number of classes.
        """

    @abstractmethod
    def of_logits(self, logits: Tensor, targets: Tensor, blank: int) -> HeadLogProbs:
        """Of logits ``[..., C]`` that exist; results are ``[...]``, as the targets."""

    @abstractmethod
    def of_rows(
        self, logits: RowLogits, targets: Tensor, blank: int, select: Select
    ) -> HeadLogProbs:
        """Equal to ``of_logits`` of logits ``[N, C]`` that are never made; results are ``[N]``."""
