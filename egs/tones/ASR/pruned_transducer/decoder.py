"""The stateless decoder (prediction network): an embedding and a convolution over two symbols.

Source: Ghodsi et al., "RNN-Transducer with Stateless Prediction Network", ICASSP 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Decoder(nn.Module):
    """Sees the last `context_size` symbols and nothing else."""

    def __init__(
        self, vocab_size: int, decoder_dim: int, blank_id: int = 0, context_size: int = 2
    ) -> None:
        """
        Args:
          vocab_size: C, blank included.
          decoder_dim: width of embedding and output, a multiple of 4.
          blank_id: the class that also stands for "before the first symbol".
          context_size: symbols seen, at least 1.
        """
        super().__init__()
        self.blank_id = blank_id
        self.context_size = context_size
        self.embedding = nn.Embedding(vocab_size, decoder_dim)
        self.conv = nn.Conv1d(
            decoder_dim, decoder_dim, context_size, groups=decoder_dim // 4, bias=False
        )

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """
        Args:
          y: class ids, [B, U], int64.
          need_pad: put `context_size - 1` blanks in front. False when decoding, where `y` already
            holds exactly the context.

        Returns:
          [B, U, decoder_dim], or [B, U - context_size + 1, decoder_dim] without padding.
        """
        if need_pad:
            y = nn.functional.pad(y, (self.context_size - 1, 0), value=self.blank_id)
        embedded = self.embedding(y).transpose(1, 2)  # [B, decoder_dim, U + context_size - 1]
        return torch.relu(self.conv(embedded)).transpose(1, 2)
