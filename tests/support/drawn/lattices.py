"""Ragged batches of every transducer loss, drawn: what to say in how many frames, and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from lattice_oracle import LossKind, transducer_costs
from torch import Tensor

FAMILIES = ("regular", "modified", "constrained", "one_sym_per_frame", "hat", "multi_blank", "tdt")


@dataclass(frozen=True, eq=False)
class Lattice:
    """The lattice of a batch.

    Attributes:
      kind: the oracle's word for the loss.
      T, frames, states: of the padded batch, and of each utterance.
      classes: C, the durations of TDT included.
      targets: ``[B, S]``; beyond an utterance's symbols there is -1, which must not be read.
      ranges: ``[B, T, s_range]`` of a pruned lattice; None: the full one.
    """

    kind: LossKind
    T: int
    frames: tuple[int, ...]
    states: tuple[int, ...]
    classes: int
    targets: Tensor
    ranges: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, T and S."""
        return len(self.frames), self.T, self.targets.shape[1]

    @property
    def tokens(self) -> int:
        return self.classes - len(self.kind.durations)

    @property
    def boundary(self) -> Tensor:
        zeros = [0] * len(self.frames)
        return torch.tensor([*zip(zeros, zeros, self.states, self.frames)])

    @property
    def evaluated(self) -> int:
        """The sites within the utterances."""
        if self.ranges is None:
            return sum(t * (s + 1) for t, s in zip(self.frames, self.states))
        inside = self.ranges <= torch.tensor(self.states)[:, None, None]
        inside &= torch.arange(self.T)[:, None] < torch.tensor(self.frames)[:, None, None]
        return int(inside.sum())

    def costs(self, logits: Tensor) -> Tensor:
        """By the oracle, of logits ``[B, T, S + 1, C]``, or of those of the ranges."""
        lengths = torch.tensor(self.frames), torch.tensor(self.states)
        return transducer_costs(logits, self.targets, *lengths, self.kind, self.ranges)

    def options(self) -> dict[str, Any]:
        """What the losses of one's own loop are asked for, but the blank."""
        kind = self.kind
        options: dict[str, Any] = {
            "clamp": kind.clamp,
            "fastemit_lambda": kind.fastemit_lambda,
            "delay_penalty": kind.delay_penalty,
            "sigma": kind.sigma,
            "use_hat_loss": kind.head == "hat",
            "durations": list(kind.durations) or None,
            "big_blank_durations": list(kind.big_blank_durations) or None,
        }
        if kind.rnnt_type == "one_sym_per_frame":
            options["one_sym_per_frame"] = True
        else:
            options["rnnt_type"] = kind.rnnt_type
        return options


def lengths_with_a_path(kind: LossKind, most_frames: int, most_states: int) -> list[tuple]:
    """Frames and states of one utterance of the full lattice."""
    blanks = {d for d in kind.durations if d} or {1, *kind.big_blank_durations}
    symbols = set(kind.durations) or {0 if kind.rnnt_type == "regular" else 1}
    ends_by_blank = kind.rnnt_type in ("regular", "one_sym_per_frame")
    reached = {(0, 0)}
    ended: set[tuple[int, int]] = set()
    for t in range(most_frames + 1):  # arcs of a symbol may pass no frame
        for s in range(most_states + 1):
            if (t, s) in reached:
                ended |= {(t + d, s) for d in blanks}
                reached |= {(t + d, s) for d in blanks} | {(t + d, s + 1) for d in symbols}
    if not ends_by_blank:
        ended |= {(t, s) for t, s in reached if t > 0}
    return sorted((t, s) for t, s in ended if 0 < t <= most_frames and s <= most_states)


@st.composite
def kinds(draw: Any, families: tuple[str, ...] = FAMILIES, labels: int = 5) -> tuple:
    """A loss, and the number of its tokens: so many labels, and the blanks at their places."""
    family = draw(st.sampled_from(families))
    options: dict[str, Any] = {}
    big_blanks = 0
    if family in ("modified", "constrained", "one_sym_per_frame"):
        options["rnnt_type"] = family
    elif family == "hat":
        options["head"] = "hat"
    elif family == "multi_blank":
        durations = draw(st.sampled_from([(2,), (3, 2), (2, 4, 3)]))
        options["big_blank_durations"], big_blanks = durations, len(durations)
    elif family == "tdt":
        options["durations"] = draw(
            st.sampled_from([(0, 1), (0, 1, 2), (1, 2), (1,), (0, 2), (1, 3, 4), (0, 1, 2, 3)])
        )
    if family in ("multi_blank", "tdt"):
        options["sigma"] = draw(st.sampled_from([0.0, 0.1]))
    options["delay_penalty"] = draw(st.sampled_from([0.0, 0.0, 0.25]))
    options["fastemit_lambda"] = draw(st.sampled_from([0.0, 0.0, 0.25]))
    if family != "hat":
        options["clamp"] = draw(st.sampled_from([-1.0, -1.0, 0.05]))
    tokens = labels + 1 + big_blanks
    blank = 0 if family == "hat" else draw(st.integers(big_blanks, tokens - 1))
    return LossKind(blank=blank, **options), tokens


@st.composite
def lattices(
    draw: Any, *, families: tuple[str, ...] = FAMILIES, is_pruned: bool = False
) -> Lattice:
    """Batches of 1 to 3 utterances of up to 5 frames and 3 symbols."""
    labels = draw(st.sampled_from([1, 2, 5, 12, 60, 130]))
    kind, tokens = draw(kinds(families, labels))
    possible = lengths_with_a_path(kind, 5, 3)
    lengths = draw(st.lists(st.sampled_from(possible), min_size=1, max_size=3))
    frames, states = zip(*lengths)
    T = max(frames) + draw(st.sampled_from([0, 0, 1]))
    S = max(states) + draw(st.sampled_from([0, 0, 1]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    blanks = range(kind.blank - len(kind.big_blank_durations), kind.blank + 1)
    symbols = torch.tensor([c for c in range(tokens) if c not in blanks])
    targets = symbols[torch.randint(0, len(symbols), (len(frames), S), generator=g)]
    beyond = torch.arange(S) >= torch.tensor(states)[:, None]
    targets = targets.masked_fill(beyond, -1)
    ranges = draw(drawn_ranges(T, S, frames, states)) if is_pruned else None
    return Lattice(kind, T, frames, states, tokens + len(kind.durations), targets, ranges)


@st.composite
def drawn_ranges(
    draw: Any, T: int, S: int, frames: tuple[int, ...], states: tuple[int, ...]
) -> Tensor:
    """Consecutive states at each frame: a climb to the last ones, or sometimes any at all."""
    s_range = draw(st.integers(1, S + 1))
    top = S + 1 - s_range
    rows = []
    for t_end, s_end in zip(frames, states):
        last = min(top, max(0, s_end + 1 - s_range))
        climb = draw(st.lists(st.integers(0, last), min_size=T, max_size=T))
        if draw(st.integers(0, 7)) < 7:
            climb.sort()
            climb[t_end - 1 :] = [last] * (T + 1 - t_end)
            climb[0] = 0 if t_end > 1 else last
        rows.append(climb)
    return torch.tensor(rows)[:, :, None] + torch.arange(s_range)
