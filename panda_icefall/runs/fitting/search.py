"""The search for the largest ``--max-duration``: which is tried next, and when there is no more."""

import math
from dataclasses import dataclass

__all__ = ["Search"]

_FASTEST = 4.0  # how many times the last one that fitted, at most, is tried
_NEAR = 0.5  # of --max-duration: what the largest of enough batches has at least
_WRONG = 1.1  # times what that memory would admit: where it fits all the same, it says nothing
_CAUTION = 0.97  # of what the memory left over would admit


@dataclass
class Search:
    """Bisection over whole seconds, on a logarithmic scale, led by the memory that was left over.

    Attributes:
      start: The first that is tried, unless it is known already whether it fits.
      longest: None above is tried.
      most_trials: None is tried after so many; what an earlier search has found is not counted.
      tolerance: The relative width of the interval at which the search ends.
      fits: The largest that has fitted; 0: none.
      too_long: The smallest that has not; None: none.
      trials: Tried so far.
    """

    start: int
    longest: int
    most_trials: int
    tolerance: float
    fits: int = 0
    too_long: int | None = None
    trials: int = 0
    _room: float | None = None  # how many times the batch that fitted, by the memory left over
    _is_misled: bool = False  # something fitted that by that memory would not have
    _fits_all: bool = False
    _makes_none: bool = False

    def note_fit(self, seconds: int, padded_seconds: float, room: float | None) -> None:
        """``seconds`` fitted.

        Args:
          seconds: What was tried.
          padded_seconds: Of its largest batch. Where they are far fewer than ``seconds``, the data
            have no more.
          room: The memory that may be used over that which was, both above what is always there;
            None: unknown.
        """
        self.trials += 1
        self._fits_all = padded_seconds < _NEAR * seconds
        if self._room is not None and seconds > _WRONG * self._room * self.fits:
            self._is_misled = True
        self.fits, self._room = seconds, None if self._is_misled else room

    def note_too_long(self, seconds: int, *, lacks_data: bool = False) -> None:
        """``seconds`` did not fit, or, where the data are too few, made no batch at all."""
        self.trials += 1
        self.too_long, self._makes_none = seconds, lacks_data

    @property
    def lacks_data(self) -> bool:
        """Whether the data, and not the memory, are what keeps the result from being larger."""
        return self._fits_all if self.too_long is None else self._makes_none

    @property
    def is_settled(self) -> bool:
        """Whether more trials would find nothing more."""
        if self.too_long is not None:
            return self.too_long - self.fits <= max(1.0, self.tolerance * self.fits)
        return self.fits >= self.longest or self._fits_all

    @property
    def next(self) -> int | None:
        """What to try next; None: the search is over."""
        if self.is_settled or self.trials >= self.most_trials:
            return None
        start = max(1, min(self.start, self.longest))
        if not self.trials and self.fits < start and (self.too_long or math.inf) > start:
            return start
        if self.too_long is None:
            growth = 2.0 if self._room is None else _CAUTION * self._room
            grown = round(self.fits * min(_FASTEST, max(1 + self.tolerance, growth)))
            return min(self.longest, max(self.fits + 1, grown))
        if not self.fits:
            return self.too_long // 2
        if self._room is not None:
            margin = self.tolerance * self.fits / 2
            led = round(_CAUTION * self._room * self.fits)
            if self.fits + margin < led < self.too_long - margin:
                return led
        middle = round((self.fits * self.too_long) ** 0.5)
        return min(self.too_long - 1, max(self.fits + 1, middle))
