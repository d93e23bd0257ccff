"""The joiner: where encoder and decoder meet, and where the classes are."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """`output_linear(tanh(encoder_proj(encoder_out) + decoder_proj(decoder_out)))`."""

    def __init__(
        self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.decoder_proj = nn.Linear(decoder_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(
        self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True
    ) -> Tensor:
        """
        Args:
          encoder_out: [..., encoder_dim], or [..., joiner_dim] if already projected.
          decoder_out: [..., decoder_dim], or [..., joiner_dim] if already projected.
          project_input: apply the two input projections. In training they come before pruning,
            where there are fewer frames to project.

        Returns:
          Logits, [..., C].
        """
        if project_input:
            encoder_out = self.encoder_proj(encoder_out)
            decoder_out = self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
