"""The utterances of a training loop's batch, checked alike for full and for pruned lattices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from panda_icefall.losses.argument_kinds import as_indices
from panda_icefall.losses.host_values import Boundary, check_inside, on_host, rows_of
from panda_icefall.losses.lattice_checks import check_form, ranges_error, ranges_violations
from panda_icefall.losses.sites import FullSites, RetainedSites
from panda_icefall.losses.spec import LatticeSpec


def sites_of_utterances(
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    *,
    T: int,
    blank: int,
    classes: int,
    forbidden: range,
    durations: Sequence[int] | None = None,
    is_final_blank: bool = False,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    fastemit_lambda: float = 0.0,
) -> FullSites:
    """The full lattice of utterances that begin at their first frame; all is checked here.

    Args:
      targets: integers ``[B, S]``; what lies beyond an utterance's length is not read.
      logit_lengths, target_lengths: integers ``[B]``, 1 to T frames and 0 to S symbols.
      blank: in ``[0, classes)``.
      classes: that the targets may have.
      forbidden: classes that they may not have, the blanks.
      durations: frames that symbols and blanks pass, where they pass any of these.
      others: as of ``LatticeSpec``.

    Raises:
      ValueError: a shape or a value; of a value the utterance is named.
      TypeError: a dtype.
      RuntimeError: a CUDA graph is being captured.

    One device sync.
    """
    device = targets.device
    symbols = as_indices("targets", targets, device, "[B, S]")
    if symbols.dim() != 2:
        raise ValueError(f"targets: got shape {tuple(symbols.shape)}, expected [B, S]")
    B, S = symbols.shape
    frames = as_indices("logit_lengths", logit_lengths, device, f"[{B}]")
    states = as_indices("target_lengths", target_lengths, device, f"[{B}]")
    for name, values in ("logit_lengths", frames), ("target_lengths", states):
        if tuple(values.shape) != (B,):
            raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected [{B}]")
    begin = torch.zeros_like(frames)
    spec = LatticeSpec(
        symbols=symbols,
        termination_symbol=blank,
        boundary=torch.stack((begin, begin, states, frames), dim=1),
        rnnt_type=rnnt_type,
        delay_penalty=delay_penalty,
        reduction=reduction,
        fastemit_lambda=fastemit_lambda,
        is_final_blank=is_final_blank,
    )
    names = _Names("targets", "logit_lengths")
    spec, read = _read(spec, names, T=T, classes=classes, forbidden=forbidden)
    for b, (_, _, s_end, _) in enumerate(read.rows):
        if not 0 <= s_end <= S:
            raise ValueError(
                f"target_lengths: got {s_end} for utterance b={b}, expected 0 to S={S}, the "
                "symbols of targets"
            )
    read.check(spec, names, durations)
    return FullSites.of_checked(spec, T, read.rows)


def sites_of_ranges(
    spec: LatticeSpec, *, classes: int, forbidden: range, durations: Sequence[int] | None = None
) -> RetainedSites:
    """The pruned lattice of utterances, which is checked as a full one is.

    Args:
      spec: with ranges; its symbols as given: what lies outside an utterance's boundary is not
        read.
      classes, forbidden, durations: as in ``sites_of_utterances``.

    Raises, device syncs: as in ``sites_of_utterances``.
    """
    T, boundary = spec.band.shape[1], spec.boundary
    names = _Names("symbols", "ranges" if boundary is None else "boundary")
    spec, read = _read(spec, names, T=T, classes=classes, forbidden=forbidden)
    if boundary is not None:
        check_inside(read.rows, boundary, spec.symbols.shape[1], T)
    if read.has_other_ranges:
        raise ranges_error(spec.band, spec.symbols.shape[1])
    read.check(spec, names, durations)
    return RetainedSites.of_checked(spec, read.live, read.count)


class _Names(NamedTuple):
    """What the arguments are called that hold the symbols, and the number of frames."""

    symbols: str
    frames: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
    """What was read of a batch, not yet checked.

    Attributes:
      T: frames of the padded batch.
      rows: of its boundary.
      bad_symbol: the error of the first symbol that is no class, if there is one.
      has_other_ranges: whether ranges are no consecutive states.
      live: bool ``[B, T, s_range]``, retained sites inside the boundary; None: all, or no ranges.
      count: how many there are.
    """

    T: int
    rows: Boundary
    bad_symbol: ValueError | None
    has_other_ranges: bool
    live: Tensor | None
    count: int

    def check(self, spec: LatticeSpec, names: _Names, durations: Sequence[int] | None) -> None:
        """Refuse utterances without frames, with a symbol that is no class, or without a path.

        Raises:
          ValueError: naming the utterance.
        """
        lengths = [
            (t_end - t_begin, s_end - s_begin) for s_begin, t_begin, s_end, t_end in self.rows
        ]
        for b, (t, _) in enumerate(lengths):
            if not 1 <= t <= self.T:
                raise ValueError(
                    f"{names.frames}: got {t} frames for utterance b={b}, expected 1 to "
                    f"T={self.T}; drop utterances without frames"
                )
        if self.bad_symbol is not None:
            raise self.bad_symbol
        for b, (t, s) in enumerate(lengths):
            needed = s * int(not spec.is_regular) + int(spec.is_final_blank)
            if durations is not None:
                needed = _frames_needed(t, s, durations)
            if t < needed:
                raise ValueError(
                    f"{names.frames}: got {t} frames for utterance b={b} with {s} symbols, "
                    f"expected at least {needed}, as its arcs pass whole frames here; drop such "
                    "utterances"
                )


def _read(
    spec: LatticeSpec, names: _Names, *, T: int, classes: int, forbidden: range
) -> tuple[LatticeSpec, _Read]:
    """What the host has to know, in one device sync; and the lattice with blanks as padding.

    Raises:
      ValueError, TypeError: a form, or there are no frames at all.
    """
    check_form(spec, classes, T)
    symbols, boundary, ranges = spec.symbols, spec.boundary, spec.ranges
    B, S = symbols.shape
    if T == 0 and B > 0:
        raise ValueError(
            f"{names.frames}: got no frames at all (T=0), expected 1 or more for each utterance; "
            "skip such a batch"
        )
    is_bad = (symbols < 0) | (symbols >= classes)
    is_bad |= (symbols >= forbidden.start) & (symbols < forbidden.stop)
    nothing = symbols.new_zeros(0)
    live = other_ranges = None
    if boundary is not None:
        s = torch.arange(S, device=symbols.device)
        is_read = (s >= boundary[:, :1]) & (s < boundary[:, 2:3])
        is_bad &= is_read
        padding = torch.full_like(symbols, spec.termination_symbol)
        spec = dataclasses.replace(spec, symbols=torch.where(is_read, symbols, padding))
    if ranges is not None:
        live = RetainedSites.live_sites(spec)
        other_ranges = ranges_violations(ranges, S).any()
    has_bad, rows, has_other, count = on_host(
        is_bad.any(dim=1),
        nothing if boundary is None else boundary,
        nothing if other_ranges is None else other_ranges,
        nothing if live is None else live.sum(),
    )
    return spec, _Read(
        T=T,
        rows=[(0, 0, S, T)] * B if boundary is None else rows_of(rows),
        bad_symbol=(
            _symbol_error(names.symbols, has_bad.index(1), symbols, is_bad, classes, forbidden)
            if any(has_bad)
            else None
        ),
        has_other_ranges=any(has_other),
        live=live,
        count=sum(count),
    )


def _symbol_error(
    name: str, b: int, symbols: Tensor, is_bad: Tensor, classes: int, forbidden: range
) -> ValueError:
    """The error that names the first symbol of an utterance that is no class, or a blank."""
    at = int(is_bad[b].int().argmax())
    blanks = f", and not {forbidden.start} to {forbidden.stop - 1}, the blanks"
    if len(forbidden) == 1:
        blanks = f", and not {forbidden.start}, the blank"
    return ValueError(
        f"{name}: got id {int(symbols[b, at])} for utterance b={b} at s={at}, expected "
        f"0 <= id < {classes}{blanks if forbidden else ''}"
    )


def _frames_needed(frames: int, states: int, durations: Sequence[int]) -> int:
    """An utterance's frames where some path passes them, else the next number that one does.

    A path has a symbol arc of any duration for each symbol, and at least one blank arc, which is
    the last, of a duration above 0.
    """
    least = min(durations)
    if 1 in durations:  # then every number from the least on
        return (states + 1) * least + int(least == 0)
    blanks = [duration for duration in durations if duration > 0]
    most = frames + states * least + 2 * max(durations) ** 2
    reached = {0}
    for _ in range(states):
        reached = {n + d for n in reached for d in durations if n + d <= most}
    passed = sorted({n + d for n in reached for d in blanks})
    ends: set[int] = set()
    while passed:
        n = passed.pop(0)
        if n not in ends and n <= most:
            ends.add(n)
            passed += [n + d for d in blanks]
    return min((n for n in ends if n >= frames), default=most)
