"""Sizes of a transducer loss, and those of the corpora that the benchmarks name."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LossShape:
    """One batch in k2's letters.

    Attributes:
      B, T, S: utterances, frames after subsampling and symbols of the longest utterance.
      s_range: states kept at each frame.
      C: classes with blank.
      H: width of the joiner.
      D: width of encoder and decoder outputs, which the projections read.
      shortest: length of the shortest utterance as a share of the longest, in (0, 1]; the others
        are spread evenly between the two. 1: no padding.
    """

    B: int = 20
    T: int = 150
    S: int = 14
    s_range: int = 5
    C: int = 4336
    H: int = 512
    D: int = 512
    shortest: float = 0.5

    def __post_init__(self) -> None:
        for name in ("B", "T", "S", "s_range", "H", "D"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.C < 2:
            raise ValueError(f"C: got {self.C}, expected at least 2, blank and one symbol")
        if not 0 < self.shortest <= 1:
            raise ValueError(f"shortest: got {self.shortest}, expected 0 < shortest <= 1")

    @property
    def sites(self) -> int:
        """N of the pruned lattice."""
        return self.B * self.T * min(self.s_range, self.S + 1)

    def warm_up(self) -> LossShape:
        """The same kind of problem, just large enough that libraries load code and get buffers."""
        return replace(
            self,
            B=min(self.B, 2),
            T=min(self.T, 100),
            S=min(self.S, 8),
            C=min(self.C, 2048),
            shortest=1.0,
        )

    def with_batch(self, B: int) -> LossShape:
        """The same lengths with another number of utterances."""
        return replace(self, B=B)


CORPORA = {
    "aishell": LossShape(C=4336),
    "wenetspeech": LossShape(C=5537),
}

# github.com/csukuangfj/transducer-loss-benchmarking: LibriSpeech, batches of 500 BPE pieces, drawn
# at random or sorted by length; its U, 121 and 112, counts the states, S + 1. The spread of lengths
# inside a batch is ours.
PUBLIC = {
    "unsorted": LossShape(B=30, T=451, S=120, C=500, shortest=0.3),
    "sorted": LossShape(B=22, T=455, S=111, C=500, shortest=0.95),
}
