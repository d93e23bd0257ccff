"""Why a routed loss is not finite: which utterance, which quantity, where."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panda_icefall.dtypes import HALVES
from panda_icefall.losses.simple_tiled import Projection
from panda_icefall.losses.simple_tiled.source import LogitSource
from panda_icefall.losses.sites import LatticeSites, RetainedSites, SiteLogProbs
from panda_icefall.losses.spec import LatticeSpec
from panda_icefall.normalizer.autocast import no_autocast
from panda_icefall.routing.computed_losses import (
    AM,
    LM,
    LOGITS,
    Computed,
    ComputedByCalls,
    ComputedLoss,
    ComputedSimpleLoss,
)

__all__ = ["Finding", "bad_log_probs", "diagnosed", "lengths_of"]

_SIDES = {AM: "encoder output", LM: "decoder output", LOGITS: "logits"}
_OTHER = "another input of the joiner"


@dataclass(frozen=True)
class Finding:
    """One utterance whose loss is not finite.

    Attributes:
      loss: name of the kind of loss.
      utterance: its place in the batch, b.
      frames, symbols: its T, after subsampling, and S.
      loss_value: as text, for NaN and infinities.
      quantity: the first one on the way to the loss that is not finite: ``encoder output``,
        ``decoder output``, ``projection``, ``logits``, ``score``, or parameters.
      at: frame and state of the first site where it is not finite; None: it has no site.
      reason: in words.
    """

    loss: str
    utterance: int
    frames: int
    symbols: int
    loss_value: str
    quantity: str
    at: tuple[int, int] | None
    reason: str

    def __str__(self) -> str:
        where = "" if self.at is None else f" at t={self.at[0]}, s={self.at[1]}"
        empty = ", an empty transcript" if self.symbols == 0 else ""
        return (
            f"the {self.loss} of utterance b={self.utterance} (T={self.frames}, "
            f"S={self.symbols}{empty}) is {self.loss_value}: {self.quantity}{where}: {self.reason}"
        )


@dataclass(frozen=True)
class _Cause:
    """A quantity that is not finite in some utterances: bool ``[B]``, and where it is so first."""

    quantity: str
    reason: str
    is_bad: Tensor
    first: Sequence[tuple[int, int] | None]


def lengths_of(spec: LatticeSpec, frames: int) -> list[tuple[int, int]]:
    """T and S of every utterance."""
    B, S = spec.symbols.shape
    if spec.boundary is None:
        return [(frames, S)] * B
    return [(t_end - t, s_end - s) for s, t, s_end, t_end in spec.boundary.tolist()]


def diagnosed(found: Computed) -> list[Finding]:
    """What is wrong with the utterances whose loss is not finite; empty where all are finite.

    Computes the losses once more, by utterance, without gradients. Reads device values. Where that
    fails, as for memory, it is logged, and the findings are empty; so they are where what the loss
    read is freed or sharded.
    """
    if not found.is_whole:
        return []
    try:
        return _diagnosed(found)
    except Exception as error:  # training has to go on as it would have
        logging.warning("panda: a %s that is not finite could not be looked into: %s",
                        found.name, error)  # fmt: skip
        return []


def _diagnosed(found: Computed) -> list[Finding]:
    device = found.loss.device
    with torch.no_grad(), no_autocast(device):
        seen: list[SiteLogProbs] = []
        if isinstance(found, ComputedSimpleLoss):
            losses, causes = found.by_utterance(), _of_projections(found)
        else:
            losses = found.by_utterance(seen.append)
            causes = _of_tables(found) if isinstance(found, ComputedLoss) else _of_calls(found)
            causes += _of_log_probs(found.sites, seen[-1])
        values = losses.tolist()
        # k2's recursion may give a number where an arc is NaN.
        flags = torch.stack([~losses.isfinite(), *(cause.is_bad for cause in causes)])
        is_bad = flags.any(dim=0).tolist()
    lengths = lengths_of(found.spec, found.frames)
    findings = []
    for b in (b for b, bad in enumerate(is_bad) if bad):
        cause = next((c for c in causes if bool(c.is_bad[b])), None)
        if cause is None:
            quantity, at, reason = "score", None, _of_score(found, *lengths[b])
        else:
            quantity, at, reason = cause.quantity, cause.first[b], cause.reason
        findings.append(Finding(found.name, b, *lengths[b], str(values[b]), quantity, at, reason))
    return findings


def _of_score(found: Computed, frames: int, symbols: int) -> str:
    spec = found.spec
    if frames < 1:
        return "no frame is left after subsampling; drop such utterances"
    if not spec.is_regular and frames < symbols:
        return (
            f"T < S, and in a {spec.rnnt_type} lattice each symbol takes a frame; drop the "
            "utterances that are too short or use 'regular'"
        )
    if spec.ranges is not None and symbols > (spec.ranges.shape[2] - 1) * frames:
        return (
            f"no path: s_range={spec.ranges.shape[2]} reaches "
            f"{(spec.ranges.shape[2] - 1) * frames} symbols in its frames; raise the prune range"
        )
    if isinstance(found, ComputedSimpleLoss):
        return "all that goes in is finite, so its products or their sums overflow, or no path is"
    return "all its log-probs are finite or -inf, and no path is left"


def _of_tables(found: ComputedLoss) -> list[_Cause]:
    """What the joiner reads, and its parameters."""
    causes, logits = [], found.logits
    for name, table in zip(found.tables, logits.rows.tables):
        bad_rows = ~table.values.isfinite().all(dim=1)
        bad = bad_rows if table.index is None else bad_rows.index_select(0, table.index)
        if bool(bad.any()):
            quantity = _SIDES.get(name, _OTHER)
            reason = _seen_in(table.values, f"{name}, as the joiner reads it")
            causes.append(_cause(found.sites, quantity, reason, bad))
    causes += _of_parameters(
        "the joiner", found.spec, [*logits.rows.parameters, logits.weight, logits.bias]
    )
    return causes


def _of_log_probs(sites: LatticeSites, seen: SiteLogProbs) -> list[_Cause]:
    """The logits, by their normaliser, at the live sites."""
    causes = []
    for name, bad in bad_log_probs(seen):
        if bool(bad.any()):
            said = "NaN" if bool(getattr(seen, name)[bad].isnan().any()) else "infinite"
            reason = f"what the joiner reads is finite, and {name} of its logits is {said}"
            causes.append(_cause_in_lattice(sites, "logits", reason, bad))
    return causes


def bad_log_probs(seen: SiteLogProbs) -> Iterator[tuple[str, Tensor]]:
    """Where what a loss read is not finite: a name and a bool ``[B, T, s_range]`` for each."""
    yield "log_z", seen.live & ~seen.log_z.isfinite()
    # -inf is the log-prob of a class with a logit of -inf, and no fault.
    yield "target", seen.live & (seen.target.isnan() | seen.target.isposinf())
    yield "blank", seen.live & (seen.blank.isnan() | seen.blank.isposinf())


def _of_projections(found: ComputedSimpleLoss) -> list[_Cause]:
    """What the simple loss's projections read, and their parameters; or am and lm themselves."""
    causes = []
    for name, source in ((AM, found.am), (LM, found.lm)):
        values = source.parts[0]
        assert values is not None
        is_read = isinstance(source, Projection)
        what = f"the input of {name}'s projection" if is_read else name
        causes += _of_rows(found, name, values, _SIDES[name] if is_read else "projection", what)
    for name, source in ((AM, found.am), (LM, found.lm)):
        causes += _of_parameters(f"{name}'s projection", found.spec, _parameters(source))
    return causes


def _of_calls(found: ComputedByCalls) -> list[_Cause]:
    """What a joiner that was called reads."""
    sides = ((AM, found.am), (LM, found.lm))
    return [
        cause
        for name, values in sides
        for cause in _of_rows(found, name, values, _SIDES[name], f"{name}, as the joiner reads it")
    ]


def _of_rows(found: Computed, name: str, values: Tensor, quantity: str, what: str) -> list[_Cause]:
    """Rows ``[B, T, D]`` of the encoder (AM), or ``[B, S + 1, E]`` of the predictor, inside."""
    lengths = torch.tensor(lengths_of(found.spec, found.frames), device=values.device)
    ends = lengths[:, 0] if name == AM else lengths[:, 1] + 1
    inside = torch.arange(values.shape[1], device=values.device) < ends[:, None]
    bad = inside & ~values.isfinite().all(dim=2)
    if not bool(bad.any()):
        return []
    rows = bad.int().argmax(dim=1).tolist()
    first = [(r, 0) if name == AM else (0, r) for r in rows]
    return [_Cause(quantity, _seen_in(values, what), bad.any(dim=1), first)]


def _parameters(source: LogitSource) -> Sequence[Tensor | None]:
    return source.parts[1:]


def _of_parameters(
    owner: str, spec: LatticeSpec, parameters: Sequence[Tensor | None]
) -> list[_Cause]:
    B = spec.symbols.shape[0]
    for parameter in parameters:
        if parameter is None or bool(parameter.isfinite().all()):
            continue
        reason = _seen_in(parameter, f"a parameter of shape {tuple(parameter.shape)}")
        is_bad = spec.symbols.new_ones(B, dtype=torch.bool)
        return [_Cause(f"parameters of {owner}", reason, is_bad, [None] * B)]
    return []


def _seen_in(values: Tensor, what: str) -> str:
    """What is in a tensor that should be finite, in words."""
    if bool(values.isnan().any()):
        return f"NaN already in {what}"
    if values.dtype in HALVES:
        most = torch.finfo(values.dtype).max
        return f"half overflow: {what} is {values.dtype}, whose largest number is {most:g}"
    return f"inf already in {what}"


def _cause(sites: LatticeSites, quantity: str, reason: str, bad: Tensor) -> _Cause:
    """Of sites ``[N]``; those outside of the boundary do not count."""
    grid = sites.observed(*[bad.to(torch.float32)] * 3)
    return _cause_in_lattice(sites, quantity, reason, (grid.target > 0) & grid.live)


def _cause_in_lattice(sites: LatticeSites, quantity: str, reason: str, bad: Tensor) -> _Cause:
    """Of sites at their places, bool ``[B, T, s_range]`` or ``[B, T, S + 1]``."""
    at = bad.flatten(1).int().argmax(dim=1)
    t, s = torch.div(at, bad.shape[2], rounding_mode="floor"), at % bad.shape[2]
    if isinstance(sites, RetainedSites):
        s = sites.spec.band[torch.arange(len(t), device=t.device), t, s]
    return _Cause(quantity, reason, bad.flatten(1).any(dim=1), [*zip(t.tolist(), s.tolist())])
