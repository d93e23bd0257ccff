"""The encoder: convolutional subsampling by 4, then gated depthwise-convolution blocks.

No recurrence and no attention, so that it is quick on a CPU; every block masks the padding, so that
the output for an utterance does not depend on what it was batched with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def make_keep_mask(lens: Tensor, max_len: int) -> Tensor:
    """Mask of the frames that exist.

    Args:
      lens: lengths in frames, [B], int64.
      max_len: T.

    Returns:
      [B, T, 1] bool, true inside the utterance.
    """
    return (torch.arange(max_len, device=lens.device)[None, :] < lens[:, None]).unsqueeze(-1)


class Conv2dSubsampling(nn.Module):
    """Two strided convolutions over time and frequency: 100 Hz in, 25 Hz out.

    Without padding in time, so a frame that exists after subsampling saw only frames that existed
    before it.
    """

    def __init__(self, num_features: int, channels: int, out_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, kernel_size=3, stride=2)
        self.conv2 = nn.Conv2d(channels, 2 * channels, kernel_size=3, stride=2)
        bands = ((num_features - 1) // 2 - 1) // 2
        self.out = nn.Linear(2 * channels * bands, out_dim)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T_in, F] and [B] to [B, T, out_dim] and [B], T = ((T_in - 1) // 2 - 1) // 2."""
        x = torch.relu(self.conv1(x.unsqueeze(1)))
        x = torch.relu(self.conv2(x))  # [B, 2 * channels, T, bands]
        x = self.out(x.permute(0, 2, 1, 3).flatten(2))
        return x, ((x_lens - 1) // 2 - 1) // 2


class ConvBlock(nn.Module):
    """A gated depthwise convolution over time and a feed-forward layer, both residual."""

    def __init__(self, dim: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.conv_norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        padding = kernel_size // 2
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=padding, groups=dim)
        self.pointwise = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 3 * dim),
            nn.SiLU(),
            nn.Linear(3 * dim, dim),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """[B, T, dim] and [B, T, 1] to [B, T, dim]."""
        y = nn.functional.glu(self.gate(self.conv_norm(x)), dim=-1) * keep
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        x = x + self.dropout(self.pointwise(nn.functional.silu(y)))
        return x + self.feed_forward(x)


class Encoder(nn.Module):
    """Log-mel features to encoder frames at a quarter of the rate."""

    def __init__(
        self,
        num_features: int = 80,
        encoder_dim: int = 144,
        num_layers: int = 4,
        kernel_size: int = 11,
        subsampling_channels: int = 16,
        dropout: float = 0.1,
    ) -> None:
        """
        Args:
          num_features: F, mel bins.
          encoder_dim: width of the output.
          num_layers: how many blocks.
          kernel_size: odd, in subsampled frames.
          subsampling_channels: of the first convolution; the second has twice as many.
          dropout: probability, 0 to 1.

        Raises:
          ValueError: an even kernel size.
        """
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number; add 1")
        self.subsampling = Conv2dSubsampling(num_features, subsampling_channels, encoder_dim)
        self.blocks = nn.ModuleList(
            ConvBlock(encoder_dim, kernel_size, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(encoder_dim)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
          x: log-mel features, [B, T_in, F], float.
          x_lens: frames of each utterance, [B], int64, each at least 7.

        Returns:
          [B, T, encoder_dim] and its lengths [B].

        Raises:
          ValueError: an utterance too short to leave one frame after subsampling.
        """
        if int(x_lens.min()) < 7:
            raise ValueError(
                f"x_lens: got an utterance of {int(x_lens.min())} frames, expected at least 7; "
                "remove shorter cuts"
            )
        keep_in = make_keep_mask(x_lens, x.size(1))
        # Each utterance's own mean is taken off: loudness and channel carry no words.
        mean = (x * keep_in).sum(dim=1, keepdim=True) / x_lens[:, None, None]
        x, x_lens = self.subsampling((x - mean) * keep_in / 4.0, x_lens)
        # Under autocast the residual stream stays in the parameters' precision; torch 1.13's
        # LayerNorm on a CPU takes nothing else.
        x = x.to(self.norm.weight.dtype)
        keep = make_keep_mask(x_lens, x.size(1))
        for block in self.blocks:
            x = block(x, keep)
        return self.norm(x), x_lens
