"""What a head is: which log-probs of a site's classes a loss reads, and how they are normalised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from panda_icefall.normalizer import RowLogits

# ``panda_icefall.normalizer.op.select`` of logits, ids and their mask; all else is given.
Select = Callable[..., tuple[Tensor, Tensor]]


class HeadLogProbs(NamedTuple):
    """What a head makes of its sites, all of one shape, in nats.

    Attributes:
      target: log-prob of the next symbol.
      blank: log-prob of the termination symbol.
      log_z: the normaliser.
    """

    target: Tensor
    blank: Tensor
    log_z: Tensor

    def reshape(self, *shape: int) -> HeadLogProbs:
        return HeadLogProbs(*(values.reshape(shape) for values in self))


class Head(ABC):
    """From logits, or from what computes them, to the log-probs that a lattice reads.

    ``targets`` are the next symbols, int64 in ``[0, C)``, one for each site; ``blank`` is the
    termination symbol.
    """

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
