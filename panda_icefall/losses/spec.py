"""The arguments that every transducer loss has, and the checks of those that are no tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panda_icefall.lattice.validation import check_rnnt_type

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
      reduction: ``none``, ``mean`` (over utterances, one or more) or ``sum``.
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
        """What ``reduction`` makes of the utterances' costs ``[B]``.

        Raises:
          ValueError: the mean of no costs, which would be NaN without a word.
        """
        if self.reduction == "none":
            return costs
        if self.reduction == "mean":
            check_mean_of(len(costs))
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

    As given: each loss checks it once, see ``panda_icefall.losses.lattice_checks``.

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


def check_mean_of(utterances: int) -> None:
    """Refuse the mean of no losses, which would be NaN without a word.

    Raises:
      ValueError: there are no utterances.
    """
    if utterances == 0:
        raise ValueError(
            "reduction: got 'mean' of a batch without utterances (B=0), expected one or more; "
            "skip such a batch, or use 'sum', which is 0 and has gradients of 0"
        )


def check_options(rnnt_type: str, reduction: str | None) -> None:
    """Refuse an unknown ``rnnt_type`` or ``reduction``.

    Raises:
      ValueError: naming the known ones.
    """
    check_rnnt_type(rnnt_type)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, expected one of {', '.join(REDUCTIONS)}")


def check_numbers(options: LatticeOptions) -> None:
    """Refuse a weight of FastEmit or a delay penalty that no loss has.

    Raises:
      ValueError: naming it.
    """
    if not 0 <= options.fastemit_lambda < float("inf"):
        raise ValueError(
            f"fastemit_lambda: got {options.fastemit_lambda}, expected 0 or more, finite"
        )
    if not math.isfinite(options.delay_penalty):
        raise ValueError(
            f"delay_penalty: got {options.delay_penalty}, expected a finite number of nats"
        )
