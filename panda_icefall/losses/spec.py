"""The arguments that every transducer loss has, and their checks, before any work."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_icefall.dynamo import opaque
from panda_icefall.lattice.validation import (
    boundary_error,
    boundary_violations,
    check_boundary_form,
    check_enough_frames,
    check_rnnt_type,
)

REDUCTIONS = ("none", "mean", "sum")


@dataclass(frozen=True, eq=False)
class LatticeOptions:
    """Which paths of a lattice count, and what their scores become.

    Attributes:
      boundary: int64 ``[B, 4]`` rows ``s_begin, t_begin, s_end, t_end``; None: all states and
        frames.
      rnnt_type: ``regular``, ``modified`` or ``constrained``, as in k2.
      delay_penalty: nats per frame of delay; each symbol arc gains
        ``delay_penalty * ((frames - 1) / 2 - t)`` with the ``t_end`` of its utterance, or T, as
        frames. 0 and below adds nothing, as in k2.
      reduction: ``none``, ``mean`` (over utterances) or ``sum``.
      fastemit_lambda: FastEmit's weight (Yu et al., arXiv:2010.11148) as warp-transducer and NeMo
        have it: the adjoints of the symbol arcs are scaled by ``1 + fastemit_lambda``, those of the
        blanks are not, and the reported loss is scaled too.
      is_final_blank: of full lattices: each utterance ends with a blank on its last frame, as in
        optimized_transducer, also where ``rnnt_type`` lets a symbol end it.
    """

    boundary: Tensor | None = None
    rnnt_type: str = "regular"
    delay_penalty: float = 0.0
    reduction: str | None = "mean"
    fastemit_lambda: float = 0.0
    is_final_blank: bool = False

    @property
    def is_regular(self) -> bool:
        """Whether a symbol arc stays on its frame, so that there are symbol arcs at frame T."""
        return self.rnnt_type == "regular"

    def earliness(self, like: Tensor, frames: int, T: int) -> Tensor:
        """Frames before the utterance's middle, ``[B or 1, frames]``, in the dtype of ``like``."""
        frame = torch.arange(frames, device=like.device, dtype=like.dtype)
        if self.boundary is None:
            return ((T - 1) / 2 - frame).unsqueeze(0)
        return (self.boundary[:, 3:4].to(like.dtype) - 1) / 2 - frame

    def last_frame(self, T: int, device: torch.device) -> Tensor:
        """Whether a frame is the last one of its utterance, bool ``[B or 1, T]``."""
        frame = torch.arange(T, device=device).unsqueeze(0)
        return frame == (T if self.boundary is None else self.boundary[:, 3:4]) - 1

    def loss_of(self, scores: Tensor) -> Tensor:
        """The loss of the utterances' total log-probs ``[B]``, negated and reduced, in nats."""
        costs = -scores
        if self.fastemit_lambda:
            costs = costs + self.fastemit_lambda * costs.detach()
        return self.reduced(costs)

    def reduced(self, costs: Tensor) -> Tensor:
        """What ``reduction`` makes of the utterances' costs ``[B]``."""
        if self.reduction == "none":
            return costs
        return costs.mean() if self.reduction == "mean" else costs.sum()

    def emitted(self, target_logp: Tensor) -> Tensor:
        """The log-probs of symbol arcs, whose gradient FastEmit scales."""
        factor = 1 + self.fastemit_lambda
        if factor == 1 or not target_logp.requires_grad:
            return target_logp
        scaled = target_logp.clone()
        scaled.register_hook(lambda grad: grad * factor)
        return scaled


@dataclass(frozen=True, eq=False, kw_only=True)
class LatticeSpec(LatticeOptions):
    """The lattice of a batch: what it emits, its states, and the options of its loss.

    As given: each loss checks it once, by ``check_spec``.

    Attributes:
      symbols: int64 ``[B, S]``, ids in ``[0, C)``, the padding included.
      termination_symbol: the blank, in ``[0, C)``.
      ranges: int64 ``[B, T, s_range]``, consecutive states in ``[0, S]`` at every frame; None: all
        states.
    """

    symbols: Tensor
    termination_symbol: int
    ranges: Tensor | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> LatticeSpec:
        """From arguments by k2's names; symbols and blank may be any integers, as in k2."""
        symbols = arguments["symbols"]
        return cls(
            symbols=symbols.long() if symbols.dtype in (torch.int16, torch.int32) else symbols,
            termination_symbol=operator.index(arguments["termination_symbol"]),
            ranges=arguments.get("ranges"),
            boundary=arguments["boundary"],
            rnnt_type=arguments["rnnt_type"],
            delay_penalty=arguments["delay_penalty"],
            reduction=arguments["reduction"],
        )

    @property
    def band(self) -> Tensor:
        """The ``ranges`` of a pruned lattice."""
        assert self.ranges is not None
        return self.ranges


@opaque
def check_lattice_inputs(
    symbols: Tensor,
    ranges: Tensor | None,
    termination_symbol: int,
    boundary: Tensor | None,
    rnnt_type: str,
    reduction: str | None,
    *,
    num_classes: int,
    T: int | None = None,
) -> None:
    """Refuse lattice inputs that no loss can be computed from, saying what is wrong and where.

    Args:
      symbols, ranges, termination_symbol, boundary, rnnt_type, reduction: as in ``LatticeSpec``.
      num_classes, T: as in ``check_spec``.

    Raises:
      ValueError, TypeError: as ``check_spec``.
    """
    spec = LatticeSpec(
        symbols=symbols, termination_symbol=termination_symbol, ranges=ranges,
        boundary=boundary, rnnt_type=rnnt_type, reduction=reduction,
    )  # fmt: skip
    check_spec(spec, num_classes, T)


def check_spec(spec: LatticeSpec, num_classes: int, T: int | None = None) -> None:
    """Refuse a lattice that no loss can be computed from, saying what is wrong and where.

    Args:
      spec: the types ``modified`` and ``constrained`` need ``T >= S``, of each utterance where
        there is a boundary: one that is too short has no path.
      num_classes: C.
      T: frames; needed only where there are no ranges.

    Raises:
      ValueError: a shape, a device, a value or an option.
      TypeError: an index tensor is not int64, or ``termination_symbol`` is not an int.

    The values of all tensors are read in one device sync; where each symbol takes a frame, the
    boundary in another one.
    """
    symbols, ranges, boundary = spec.symbols, spec.ranges, spec.boundary
    check_options(spec.rnnt_type, spec.reduction)
    _check_numbers(spec)
    _check_termination_symbol(spec.termination_symbol, num_classes)
    if symbols.ndim != 2:
        raise ValueError(f"symbols: got shape {tuple(symbols.shape)}, expected [B, S]")
    _check_int64("symbols", symbols)
    B, S = symbols.shape
    if ranges is not None:
        _check_ranges_form(ranges, symbols)
        T = ranges.shape[1]
    assert T is not None
    if not spec.is_regular and boundary is None and T < S:
        raise ValueError(
            f"rnnt_type: got {spec.rnnt_type!r} with T={T} < S={S}, expected T >= S as each symbol "
            "takes a frame; drop the utterances that are too short or use 'regular'"
        )
    if boundary is not None:
        check_boundary_form(boundary, B, symbols.device)

    flags = [((symbols < 0) | (symbols >= num_classes)).any()]
    flags.append(flags[0] if ranges is None else _ranges_violations(ranges, S).any())
    flags.append(flags[0] if boundary is None else boundary_violations(boundary, S, T).any())
    bad_symbols, bad_ranges, bad_boundary = torch.stack(flags).tolist()
    if bad_symbols:
        raise _symbols_error(symbols, num_classes)
    if ranges is not None and bad_ranges:
        raise _ranges_error(ranges, S)
    if boundary is not None and bad_boundary:
        raise boundary_error(boundary, S, T)
    if boundary is not None and not spec.is_regular:
        check_enough_frames(boundary.tolist(), spec.rnnt_type)


def check_options(rnnt_type: str, reduction: str | None) -> None:
    """Refuse an unknown ``rnnt_type`` or ``reduction``.

    Raises:
      ValueError: naming the known ones.
    """
    check_rnnt_type(rnnt_type)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, expected one of {', '.join(REDUCTIONS)}")


def _check_numbers(options: LatticeOptions) -> None:
    if not 0 <= options.fastemit_lambda < float("inf"):
        raise ValueError(
            f"fastemit_lambda: got {options.fastemit_lambda}, expected 0 or more, finite"
        )
    if not math.isfinite(options.delay_penalty):
        raise ValueError(
            f"delay_penalty: got {options.delay_penalty}, expected a finite number of nats"
        )


def _check_termination_symbol(termination_symbol: int, num_classes: int) -> None:
    if not isinstance(termination_symbol, int):
        raise TypeError(
            f"termination_symbol: got {type(termination_symbol).__name__}, expected int; "
            "call int() on it"
        )
    if not 0 <= termination_symbol < num_classes:
        raise ValueError(
            f"termination_symbol: got {termination_symbol}, expected 0 <= id < C={num_classes}"
        )


def _check_int64(name: str, ids: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise TypeError(f"{name}: got {ids.dtype}, expected torch.int64; call {name}.long()")


def _check_ranges_form(ranges: Tensor, symbols: Tensor) -> None:
    B, S = symbols.shape
    if ranges.ndim != 3 or ranges.shape[0] != B or not 1 <= ranges.shape[2] <= S + 1:
        raise ValueError(
            f"ranges: got shape {tuple(ranges.shape)}, expected [B, T, s_range] = "
            f"[{B}, T, 1..{S + 1}] for symbols of shape {tuple(symbols.shape)}"
        )
    _check_int64("ranges", ranges)
    if ranges.device != symbols.device:
        raise ValueError(
            f"ranges: got device {ranges.device}, expected that of symbols, {symbols.device}"
        )


def _ranges_violations(ranges: Tensor, S: int) -> Tensor:
    """Frames whose states leave ``[0, S]`` or are not consecutive, bool ``[B, T]``."""
    first = ranges[:, :, :1]
    s_range = ranges.shape[2]
    skips = (ranges - first != torch.arange(s_range, device=ranges.device)).any(dim=2)
    first = first.squeeze(2)
    return skips | (first < 0) | (first > S + 1 - s_range)


def _symbols_error(symbols: Tensor, num_classes: int) -> ValueError:
    b, s = ((symbols < 0) | (symbols >= num_classes)).nonzero()[0].tolist()
    return ValueError(
        f"symbols: got id {int(symbols[b, s])} for utterance b={b} at s={s}, "
        f"expected 0 <= id < C={num_classes}; pad with a class id"
    )


def _ranges_error(ranges: Tensor, S: int) -> ValueError:
    b, t = _ranges_violations(ranges, S).nonzero()[0].tolist()
    return ValueError(
        f"ranges: got {ranges[b, t].tolist()} for utterance b={b} at t={t}, expected "
        f"{ranges.shape[2]} consecutive states in 0..S={S}; use get_rnnt_prune_ranges"
    )
