"""Which of the field's transducer losses is asked for: its head and its lattice."""

from __future__ import annotations

import functools
import math
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from panda_icefall.losses.heads import HatHead, Head, MultiBlankHead, PlainHead, TdtHead
from panda_icefall.losses.lattices.durations import multi_blank_loss, tdt_loss
from panda_icefall.losses.selected import LatticeLoss

__all__ = ["Variant"]


@dataclass(frozen=True)
class Variant:
    """At most one of HAT, multi-blank and TDT; none of them is the transducer of the paper.

    Attributes:
      use_hat_loss: the blank is a Bernoulli variable beside a softmax over the other classes.
      big_blank_durations: frames that each big blank passes, 2 or more; big blank ``i`` is class
        ``blank - 1 - i``.
      durations: frames that each duration of a TDT model passes, ascending.
      sigma: nats taken from every log-prob (multi-blank), or from those of the tokens (TDT).
      omega: probability that a call computes the ordinary loss of a TDT model's tokens instead.
        Drawn once per call from Python's ``random``, as in NeMo.

    Raises:
      ValueError: two of the losses are asked for, or a duration, sigma or omega is out of range.
    """

    use_hat_loss: bool = False
    big_blank_durations: Sequence[int] | None = None
    durations: Sequence[int] | None = None
    sigma: float = 0.0
    omega: float = 0.0

    def __post_init__(self) -> None:
        asked = {
            "use_hat_loss": self.use_hat_loss,
            "big_blank_durations": self.big_blank_durations is not None,
            "durations": self.durations is not None,
        }
        names = [name for name, is_asked in asked.items() if is_asked]
        if len(names) > 1:
            raise ValueError(f"{names[1]}: got it with {names[0]}, expected one of {[*asked]}")
        for name, least in (("big_blank_durations", 2), ("durations", 0)):
            if asked[name]:
                self._check_durations(name, least)
        if not -float("inf") < self.sigma < float("inf"):
            raise ValueError(f"sigma: got {self.sigma}, expected a finite number of nats")
        if self.sigma and not (asked["big_blank_durations"] or asked["durations"]):
            raise ValueError(
                f"sigma: got {self.sigma} without big_blank_durations or durations, expected 0; "
                "only multi-blank and TDT losses have it"
            )
        if not 0 <= self.omega <= 1:
            raise ValueError(f"omega: got {self.omega}, expected a probability, 0 to 1")
        if self.omega and not asked["durations"]:
            raise ValueError(
                f"omega: got {self.omega} without durations, expected 0; only TDT has it"
            )

    def _check_durations(self, name: str, least: int) -> None:
        try:
            given = [operator.index(duration) for duration in getattr(self, name)]
        except TypeError:
            raise TypeError(
                f"{name}: got {getattr(self, name)!r}, expected a sequence of integers"
            ) from None
        is_ascending = given == sorted(set(given)) or name != "durations"
        if not given or min(given) < least or max(given) < 1 or not is_ascending:
            order = "one of them 1 or more, ascending" if name == "durations" else "any order"
            raise ValueError(
                f"{name}: got {given}, expected numbers of frames, {least} or more, {order}"
            )

    def chosen(self) -> tuple[Head, LatticeLoss | None]:
        """The head and, where it has arcs of its own, the lattice of one call."""
        loss = None
        if self.big_blank_durations is not None:
            loss = functools.partial(
                multi_blank_loss, big_blank_durations=self.big_blank_durations, sigma=self.sigma
            )
        if self.durations is not None:
            if self.omega and random.random() < self.omega:
                return TdtHead(len(self.durations), reads_durations=False), None
            loss = functools.partial(tdt_loss, durations=self.durations, sigma=self.sigma)
        return self._head(), loss

    def _head(self) -> Head:
        if self.use_hat_loss:
            return HatHead()
        if self.big_blank_durations is not None:
            return MultiBlankHead(len(self.big_blank_durations))
        return PlainHead() if self.durations is None else TdtHead(len(self.durations))

    def blank_of(self, given: int, classes: int, *, name: str = "blank") -> int:
        """The class of the blank, where the loss is defined for it and for so many logits.

        Args:
          given: what the user gave as blank; a negative one counts from the last token.
          classes: how many logits the joiner gives.
          name: of the argument.

        Raises:
          ValueError: naming it.
        """
        if classes < 1:
            raise ValueError("joiner: got no classes (C=0), expected 1 or more")
        tokens = classes - self.duration_classes
        if tokens < 1:
            raise ValueError(
                f"durations: got {self.duration_classes} for a joiner that gives {classes} logits, "
                "expected fewer: a token's logits come before theirs"
            )
        blank = tokens + given if given < 0 else given
        if not 0 <= blank < tokens:
            raise ValueError(f"{name}: got {given}, expected a class, {-tokens} <= it < {tokens}")
        if self.use_hat_loss and (blank != 0 or classes < 2):
            raise ValueError(
                f"{name}: got {given} of {classes} classes, expected 0 with use_hat_loss=True, and "
                "a symbol besides; make the blank the first class"
            )
        if blank < self.big_blanks:
            raise ValueError(
                f"{name}: got {given}, expected at least {self.big_blanks}, as big blank i is "
                "class blank - 1 - i; make the blank the last class"
            )
        return blank

    def blanks(self, blank: int) -> range:
        """The classes that no symbol has: the blank and the big blanks before it."""
        return range(blank - self.big_blanks, blank + 1)

    def check_clamp(self, clamp: float) -> None:
        """Refuse a clamp that is no number, or of logits that are in two parts.

        Raises:
          ValueError: naming it.
        """
        if math.isnan(clamp) or (clamp > 0 and self.use_hat_loss):
            expected = "0 or less with use_hat_loss=True" if self.use_hat_loss else "a number"
            raise ValueError(f"clamp: got {clamp}, expected {expected}")

    def check_lattice(self, rnnt_type: str, boundary: Tensor | None = None) -> None:
        """Refuse lattices that arcs over several frames are not defined on.

        Raises:
          ValueError: the type is not regular, or an utterance does not begin at 0.
        """
        if self.big_blank_durations is None and self.durations is None:
            return
        name = "durations" if self.big_blank_durations is None else "big_blank_durations"
        if rnnt_type == "one_sym_per_frame":
            raise ValueError(f"one_sym_per_frame: got True with {name}, expected False")
        if rnnt_type != "regular":
            raise ValueError(f"rnnt_type: got {rnnt_type!r} with {name}, expected 'regular'")
        has_form = boundary is not None and boundary.dim() == 2  # else refused later
        if boundary is not None and has_form and bool((boundary[:, :2] != 0).any()):
            b = int((boundary[:, :2] != 0).any(dim=1).int().argmax())
            raise ValueError(
                f"boundary: got {boundary[b].tolist()} for utterance b={b} with {name}, expected "
                "s_begin and t_begin to be 0"
            )

    @property
    def big_blanks(self) -> int:
        """How many big blanks there are."""
        return 0 if self.big_blank_durations is None else len(self.big_blank_durations)

    @property
    def duration_classes(self) -> int:
        """How many of the logits are of durations."""
        return 0 if self.durations is None else len(self.durations)
