"""The lattice of a batch from its lengths, as training loops have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panda_icefall.losses.spec import LatticeSpec

_INTEGERS = (torch.int16, torch.int32, torch.int64)


def spec_of_lengths(
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
) -> LatticeSpec:
    """The full lattice of utterances that begin at their first frame; all is checked here.

    Args:
      targets: integers ``[B, S]``; what lies beyond an utterance's length is not read.
      logit_lengths, target_lengths: integers ``[B]``, 1 to T frames and 0 to S symbols.
      classes: that the targets may have.
      forbidden: classes that they may not have, the blanks.
      durations: frames that symbols and blanks pass, where they pass any of these.
      others: as of ``LatticeSpec``.

    Raises:
      ValueError: a shape or a value; of a value the utterance is named.
      TypeError: a dtype.

    One device sync.
    """
    if targets.dim() != 2:
        raise ValueError(f"targets: got shape {tuple(targets.shape)}, expected [B, S]")
    B, S = targets.shape
    for name, values, shape in (
        ("targets", targets, (B, S)),
        ("logit_lengths", logit_lengths, (B,)),
        ("target_lengths", target_lengths, (B,)),
    ):
        if not isinstance(values, Tensor):
            got = type(values).__name__
            raise TypeError(f"{name}: got {got}, expected a tensor of integers {list(shape)}")
        if tuple(values.shape) != shape:
            raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected {list(shape)}")
        if values.dtype not in _INTEGERS:
            raise TypeError(f"{name}: got {values.dtype}, expected integers, such as torch.int64")
    frames, states = (x.to(targets.device).long() for x in (logit_lengths, target_lengths))
    symbols = targets.long()
    inside = torch.arange(S, device=symbols.device) < states[:, None]
    is_bad = (symbols < 0) | (symbols >= classes)
    is_bad |= (symbols >= forbidden.start) & (symbols < forbidden.stop)
    if durations is not None:
        needed = _frames_needed(frames, states, durations)
    else:
        needed = states * int(rnnt_type != "regular") + int(is_final_blank)
    wrong = torch.stack(
        [
            (frames < 1) | (frames > T),
            (states < 0) | (states > S),
            (is_bad & inside).any(dim=1),
            frames < needed,
        ]
    )
    if bool(wrong.any()):
        raise _error(wrong, symbols, frames, states, needed, inside & is_bad, T, classes, forbidden)
    boundary = torch.stack((torch.zeros_like(frames), torch.zeros_like(frames), states, frames), 1)
    return LatticeSpec(
        symbols=torch.where(inside, symbols, torch.full_like(symbols, blank)),
        termination_symbol=blank,
        boundary=boundary,
        rnnt_type=rnnt_type,
        delay_penalty=delay_penalty,
        reduction=reduction,
        fastemit_lambda=fastemit_lambda,
        is_final_blank=is_final_blank,
    )


def _error(
    wrong: Tensor,
    symbols: Tensor,
    frames: Tensor,
    states: Tensor,
    needed: Tensor,
    bad: Tensor,
    T: int,
    classes: int,
    forbidden: range,
) -> ValueError:
    """The error that names the first utterance for the first reason."""
    reason, b = wrong.nonzero()[0].tolist()
    t, s, S = int(frames[b]), int(states[b]), symbols.shape[1]
    if reason == 0:
        return ValueError(
            f"logit_lengths: got {t} for utterance b={b}, expected 1 to T={T}; drop utterances "
            "without frames"
        )
    if reason == 1:
        return ValueError(f"target_lengths: got {s} for utterance b={b}, expected 0 to S={S}")
    if reason == 2:
        at = int(bad[b].int().argmax())
        blanks = f", and not {forbidden.start} to {forbidden.stop - 1}, the blanks"
        if len(forbidden) == 1:
            blanks = f", and not {forbidden.start}, the blank"
        return ValueError(
            f"targets: got id {int(symbols[b, at])} for utterance b={b} at s={at}, expected "
            f"0 <= id < {classes}{blanks if forbidden else ''}"
        )
    return ValueError(
        f"logit_lengths: got {t} frames for utterance b={b} with {s} symbols, expected at least "
        f"{int(needed[b])}, as its arcs pass whole frames here; drop such utterances"
    )


def _frames_needed(frames: Tensor, states: Tensor, durations: Sequence[int]) -> Tensor:
    """The frames of each utterance where some path passes them, else the next number that one does.

    A path has a symbol arc of any duration for each symbol, and at least one blank arc, which is
    the last, of a duration above 0.
    """
    if 1 in durations:  # then every number from the least on
        return (states + 1) * min(durations) + int(min(durations) == 0)
    blanks = [duration for duration in durations if duration > 0]
    found = []
    for T, S in zip(frames.tolist(), states.tolist()):
        most = T + S * min(durations) + 2 * max(durations) ** 2
        reached = {0}
        for _ in range(S):
            reached = {n + d for n in reached for d in durations if n + d <= most}
        passed = sorted({n + d for n in reached for d in blanks})
        ends: set[int] = set()
        while passed:
            n = passed.pop(0)
            if n not in ends and n <= most:
                ends.add(n)
                passed += [n + d for d in blanks]
        found.append(min((n for n in ends if n >= T), default=most))
    return frames.new_tensor(found)
