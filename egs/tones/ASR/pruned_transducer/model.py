"""The transducer: encoder, decoder, joiner and the two losses of pruned RNN-T training.

Source: Kuang et al., "Pruned RNN-T for fast, memory-efficient ASR training", Interspeech 2022.
"""

from __future__ import annotations

import torch
from decoder import Decoder
from encoder import Encoder
from joiner import Joiner
from torch import Tensor, nn

try:
    import k2
except ImportError:
    from panda_icefall import rnnt as k2


class Transducer(nn.Module):
    """An RNN-T model trained with the simple loss and the pruned loss."""

    def __init__(self, encoder: Encoder, decoder: Decoder, joiner: Joiner, vocab_size: int) -> None:
        """
        Args:
          encoder: features to frames.
          decoder: symbols to predictions.
          joiner: both to logits over `vocab_size` classes.
          vocab_size: C, blank included.
        """
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.joiner = joiner
        self.simple_am_proj = nn.Linear(joiner.encoder_proj.in_features, vocab_size)
        self.simple_lm_proj = nn.Linear(joiner.decoder_proj.in_features, vocab_size)

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        prune_range: int = 5,
        am_scale: float = 0.0,
        lm_scale: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
          x: features, [B, T_in, F], float.
          x_lens: frames of each utterance, [B], int64.
          y: symbols padded with blank, [B, S], int64.
          y_lens: symbols of each utterance, [B], int64.
          prune_range: s_range, symbols kept at each frame.
          am_scale: weight of the acoustic-only part in the simple loss.
          lm_scale: weight of the language-only part in the simple loss.

        Returns:
          The simple and the pruned loss, each summed over the batch, in nats.
        """
        encoder_out, encoder_out_lens = self.encoder(x, x_lens)
        return self.forward_transducer(
            encoder_out, encoder_out_lens, y, y_lens, prune_range, am_scale, lm_scale
        )

    def forward_transducer(
        self,
        encoder_out: Tensor,
        encoder_out_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        prune_range: int,
        am_scale: float,
        lm_scale: float,
    ) -> tuple[Tensor, Tensor]:
        """The two losses from encoder frames [B, T, encoder_dim]; the rest as in `forward`."""
        blank_id = self.decoder.blank_id
        decoder_out = self.decoder(nn.functional.pad(y, (1, 0), value=blank_id))  # [B, S + 1, D]

        boundary = torch.zeros((y.size(0), 4), dtype=torch.int64, device=y.device)
        boundary[:, 2] = y_lens
        boundary[:, 3] = encoder_out_lens

        am = self.simple_am_proj(encoder_out)  # [B, T, C]
        lm = self.simple_lm_proj(decoder_out)  # [B, S + 1, C]
        with torch.autocast(am.device.type, enabled=False):
            simple_loss, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
                lm=lm.float(),
                am=am.float(),
                symbols=y,
                termination_symbol=blank_id,
                lm_only_scale=lm_scale,
                am_only_scale=am_scale,
                boundary=boundary,
                reduction="sum",
                return_grad=True,
            )

        ranges = k2.get_rnnt_prune_ranges(
            px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=prune_range
        )  # [B, T, s_range]
        am_pruned, lm_pruned = k2.do_rnnt_pruning(
            am=self.joiner.encoder_proj(encoder_out),
            lm=self.joiner.decoder_proj(decoder_out),
            ranges=ranges,
        )  # [B, T, s_range, H], twice
        logits = self.joiner(am_pruned, lm_pruned, project_input=False)  # [B, T, s_range, C]

        with torch.autocast(am.device.type, enabled=False):
            pruned_loss = k2.rnnt_loss_pruned(
                logits=logits.float(),
                symbols=y,
                ranges=ranges,
                termination_symbol=blank_id,
                boundary=boundary,
                reduction="sum",
            )
        return simple_loss, pruned_loss
