"""The costs of ``lattice_oracle`` by naming every path: no recursion, only for a few frames."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, combinations_with_replacement, product

import torch
from lattice_oracle import Utterance
from torch import Tensor

# What is emitted: its name, its site, and which of the durations it has.
Emission = tuple[str, int, int, int]


def cost_by_enumeration(x: Utterance) -> Tensor | None:
    """The cost of one utterance from the list of its paths; None if there is none.

    With FastEmit the gradient is put together from the posterior of each path:
    ``-sum_path posterior * (d rest + (1 + lambda) d labels)``.
    """
    paths = [path for path in _paths(x) if all(x.has(t, u) for _, t, u, _ in path)]
    if not paths:
        return None
    labels = torch.stack([_log_prob(x, path, of_labels=True) for path in paths])
    rest = torch.stack([_log_prob(x, path, of_labels=False) for path in paths])
    scores = labels + rest
    value = -scores.logsumexp(0).detach() * (1 + x.kind.fastemit_lambda)
    surrogate = -(scores.softmax(0).detach() * (rest + (1 + x.kind.fastemit_lambda) * labels)).sum()
    return value + (surrogate - surrogate.detach())


def _log_prob(x: Utterance, path: list[Emission], of_labels: bool) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, t, u, i in path:
        if (name == "label") == of_labels:
            value = {
                "label": lambda t, u, i: x.label(t, u),
                "blank": lambda t, u, i: x.blank(t, u),
                "big_blank": x.big_blank,
                "duration": x.duration,
            }[name]
            total = total + value(t, u, i)
    return total


def _paths(x: Utterance) -> Iterator[list[Emission]]:
    if x.kind.is_tdt:
        return _token_and_duration_paths(x)
    if x.kind.rnnt_type == "regular":
        return _regular_paths(x)
    return _one_symbol_paths(x)


def _regular_paths(x: Utterance) -> Iterator[list[Emission]]:
    """Cut the utterance into blanks; give each label one of their frames, in order."""
    lengths = (1, *x.kind.big_blank_durations)
    for blanks in range(1, x.T + 1):
        for which in product(range(len(lengths)), repeat=blanks):
            if sum(lengths[i] for i in which) != x.T:
                continue
            starts = [sum(lengths[i] for i in which[:n]) for n in range(blanks)]
            for frames in combinations_with_replacement(starts, x.U):
                labels = [("label", t, u, 0) for u, t in enumerate(frames)]
                yield labels + [
                    ("big_blank" if i else "blank", t, sum(f <= t for f in frames), i - 1)
                    for t, i in zip(starts, which)
                ]


def _one_symbol_paths(x: Utterance) -> Iterator[list[Emission]]:
    """Choose the frames of the labels; each other frame has a blank."""
    frames_of_labels = x.T - 1 if x.kind.rnnt_type == "one_sym_per_frame" else x.T
    for frames in combinations(range(frames_of_labels), x.U):
        path = []
        for t in range(x.T):
            u = sum(f < t for f in frames)
            path.append(("label" if t in frames else "blank", t, u, 0))
            if t in frames and x.kind.rnnt_type == "constrained":
                path.append(("blank", t, u + 1, 0))
        yield path


def _token_and_duration_paths(x: Utterance) -> Iterator[list[Emission]]:
    """Order labels and blanks, a blank last; give each a duration; they must fill the utterance."""
    durations = x.kind.durations
    for blanks in range(1, x.T + 1):
        tokens = x.U + blanks
        for at in combinations(range(tokens - 1), x.U):
            for which in product(range(len(durations)), repeat=tokens):
                is_over = sum(durations[i] for i in which) != x.T
                if is_over or any(durations[i] == 0 for n, i in enumerate(which) if n not in at):
                    continue
                path = []
                for n, i in enumerate(which):
                    t, u = sum(durations[j] for j in which[:n]), sum(label < n for label in at)
                    path.append(("label" if n in at else "blank", t, u, 0))
                    path.append(("duration", t, u, i))
                yield path
