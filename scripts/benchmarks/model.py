"""The end of an icefall model: from encoder and decoder outputs to the two losses.

Sources: icefall's egs/aishell/ASR/zipformer/model.py and joiner.py, whose attribute names and order
of calls are kept, as the routing knows a recipe by them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import k2_of_2025
from benchmarks.inputs import LossInputs
from benchmarks.sites import SiteInputs
from panda_icefall.losses import pruned_score
from panda_icefall.normalizer.autocast import no_autocast

PARTS = ("whole", "simple", "pruned")
BLANK = 0
LM_SCALE, AM_SCALE, SIMPLE_LOSS_SCALE = 0.25, 0.0, 0.5

# (target, blank) log-probs of the sites in nats, each [B, T, s_range].
SiteMethod = Callable[[SiteInputs], tuple[Tensor, Tensor]]


class Joiner(nn.Module):
    """``output_linear(tanh(encoder_proj(encoder_out) + decoder_proj(decoder_out)))``."""

    def __init__(self, D: int, H: int, C: int) -> None:
        super().__init__()
        self.encoder_proj = nn.Linear(D, H)
        self.decoder_proj = nn.Linear(D, H)
        self.output_linear = nn.Linear(H, C)

    def forward(self, am: Tensor, lm: Tensor) -> Tensor:
        """Logits ``[..., C]`` of projected inputs that broadcast to ``[..., H]``."""
        return self.output_linear(torch.tanh(am + lm))


class TransducerLoss(nn.Module):
    """Projections, joiner and losses of one recipe.

    Args:
      inputs: sizes and, where they are trained, parameters.
      has_simple: with the projections of the simple loss.
      k2: module whose transducer functions it calls.
    """

    def __init__(self, inputs: LossInputs, has_simple: bool, k2: Any = k2_of_2025) -> None:
        super().__init__()
        self.k2 = k2
        shape = inputs.shape
        device = inputs.encoder_out.device
        torch.manual_seed(0)
        if has_simple:
            self.simple_am_proj = nn.Linear(shape.D, shape.C)
            self.simple_lm_proj = nn.Linear(shape.D, shape.C)
        self.joiner = Joiner(shape.D, shape.H, shape.C)
        if inputs.parameters is not None:
            wanted = self.state_dict()
            self.load_state_dict({name: inputs.parameters[name] for name in wanted})
        self.to(device=device, dtype=inputs.encoder_out.dtype)
        # The band of the last call, so that two methods' bands can be compared.
        self.last_ranges: Tensor | None = None

    def forward(
        self, inputs: LossInputs, part: str, site_method: SiteMethod | None = None
    ) -> Tensor:
        """The loss of one part, summed over the batch, in nats.

        Args:
          inputs: the batch.
          part: ``whole`` (simple and pruned, as a recipe adds them up after its warm-up),
            ``simple`` or ``pruned`` (in the given band).
          site_method: how the pruned loss gets its log-probs; None: as ``k2`` does from logits, or
            as `panda_icefall.patched` routes it.
        """
        if part == "simple":
            return self._simple(inputs)[0]
        if part == "whole":
            simple_loss, ranges = self._simple(inputs)
            return SIMPLE_LOSS_SCALE * simple_loss + self._pruned(inputs, ranges, site_method)
        return self._pruned(inputs, inputs.ranges, site_method)

    def _simple(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        am = self.simple_am_proj(inputs.encoder_out)  # [B, T, C]
        lm = self.simple_lm_proj(inputs.decoder_out)  # [B, S+1, C]
        with no_autocast(inputs.encoder_out.device):
            loss, (px_grad, py_grad) = self.k2.rnnt_loss_smoothed(
                lm=_at_least_single(lm),
                am=_at_least_single(am),
                symbols=inputs.symbols,
                termination_symbol=BLANK,
                lm_only_scale=LM_SCALE,
                am_only_scale=AM_SCALE,
                boundary=inputs.boundary,
                reduction="sum",
                return_grad=True,
            )
        ranges = self.k2.get_rnnt_prune_ranges(
            px_grad=px_grad,
            py_grad=py_grad,
            boundary=inputs.boundary,
            s_range=inputs.shape.s_range,
        )
        self.last_ranges = ranges
        return loss, ranges

    def _pruned(self, inputs: LossInputs, ranges: Tensor, site_method: SiteMethod | None) -> Tensor:
        am = self.joiner.encoder_proj(inputs.encoder_out)  # [B, T, H]
        lm = self.joiner.decoder_proj(inputs.decoder_out)  # [B, S+1, H]
        if site_method is not None:
            head = self.joiner.output_linear
            sites = SiteInputs.make(
                am, lm, head.weight, head.bias, inputs.symbols, ranges, inputs.boundary, BLANK
            )
            target, blank = site_method(sites)
            S = inputs.symbols.shape[1]
            return pruned_score(target, blank, ranges, S, inputs.boundary, "regular", 0.0, "sum")
        am_pruned, lm_pruned = self.k2.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)
        logits = self.joiner(am_pruned, lm_pruned)  # [B, T, s_range, C]
        with no_autocast(inputs.encoder_out.device):
            return self.k2.rnnt_loss_pruned(
                logits=_at_least_single(logits),
                symbols=inputs.symbols,
                ranges=ranges,
                termination_symbol=BLANK,
                boundary=inputs.boundary,
                reduction="sum",
            )


def _at_least_single(values: Tensor) -> Tensor:
    """``values.float()``, as recipes have it before a loss; a test's float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
