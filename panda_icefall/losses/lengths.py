"""The lattice of a batch from its lengths, as training loops have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from panda_icefall.losses.host_values import on_host
from panda_icefall.losses.lattice_checks import check_form
from panda_icefall.losses.sites import FullSites
from panda_icefall.losses.spec import LatticeSpec

_INTEGERS = (torch.int16, torch.int32, torch.int64)


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
    is_bad &= inside
    begin = torch.zeros_like(frames)
    spec = LatticeSpec(
        symbols=torch.where(inside, symbols, torch.full_like(symbols, blank)),
        termination_symbol=blank,
        boundary=torch.stack((begin, begin, states, frames), dim=1),
        rnnt_type=rnnt_type,
        delay_penalty=delay_penalty,
        reduction=reduction,
        fastemit_lambda=fastemit_lambda,
        is_final_blank=is_final_blank,
    )
    check_form(spec, classes, T)
    lengths, transcripts, has_bad = on_host(frames, states, is_bad.any(dim=1))
    _check_lengths("logit_lengths", lengths, 1, T, "; drop utterances without frames")
    _check_lengths("target_lengths", transcripts, 0, S, "")
    if any(has_bad):
        raise _target_error(has_bad.index(1), symbols, is_bad, classes, forbidden)
    for b, (t, s) in enumerate(zip(lengths, transcripts)):
        needed = s * int(rnnt_type != "regular") + int(is_final_blank)
        if durations is not None:
            needed = _frames_needed(t, s, durations)
        if t < needed:
            raise ValueError(
                f"logit_lengths: got {t} frames for utterance b={b} with {s} symbols, expected at "
                f"least {needed}, as its arcs pass whole frames here; drop such utterances"
            )
    return FullSites.of_checked(spec, T, [(0, 0, s, t) for s, t in zip(transcripts, lengths)])


def _check_lengths(name: str, lengths: Sequence[int], least: int, most: int, advice: str) -> None:
    letter = "T" if least else "S"
    for b, length in enumerate(lengths):
        if not least <= length <= most:
            raise ValueError(
                f"{name}: got {length} for utterance b={b}, expected {least} to {letter}={most}"
                f"{advice}"
            )


def _target_error(
    b: int, symbols: Tensor, is_bad: Tensor, classes: int, forbidden: range
) -> ValueError:
    """The error that names the first target of an utterance that is no class."""
    at = int(is_bad[b].int().argmax())
    blanks = f", and not {forbidden.start} to {forbidden.stop - 1}, the blanks"
    if len(forbidden) == 1:
        blanks = f", and not {forbidden.start}, the blank"
    return ValueError(
        f"targets: got id {int(symbols[b, at])} for utterance b={b} at s={at}, expected "
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
