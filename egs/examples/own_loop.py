"""A training loop of your own: the loss takes the joiner, and no logits are made.

python egs/examples/own_loop.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from comparing import compare, dense_loss, made_up_batch
from torch import Tensor, nn

import panda_icefall

BLANK = 0


class Joiner(nn.Module):
    """Any module of the two: sums, products, cat, linear layers, activations, norms, dropout."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, classes)

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        """Logits ``[B, T, U + 1, C]`` of ``[B, T, D]`` and ``[B, U + 1, D]``."""
        return self.output(torch.tanh(encoder_out.unsqueeze(2) + decoder_out.unsqueeze(1)))


class Transducer(nn.Module):
    """A small one; the decoder sees one symbol."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))
        self.decoder = nn.Embedding(classes, width)
        self.joiner = Joiner(width, classes)

    def forward(self, frames: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder output ``[B, T, D]`` and decoder output ``[B, U + 1, D]``."""
        return self.encoder(frames), self.decoder(F.pad(symbols, (1, 0), value=BLANK))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--classes", type=int, default=2000)
    args = p.parse_args()

    torch.manual_seed(0)
    batch = made_up_batch(B=4, U=20, C=args.classes, D=32)
    model = Transducer(features=32, width=64, classes=args.classes)

    def routed() -> Tensor:
        encoder_out, decoder_out = model(batch.frames, batch.symbols)
        return panda_icefall.transducer_loss(
            model.joiner,
            encoder_out,
            decoder_out,
            batch.symbols,
            batch.frame_lengths,
            batch.symbol_lengths,
            blank=BLANK,
        )

    def dense() -> Tensor:
        logits = model.joiner(*model(batch.frames, batch.symbols))
        return dense_loss(logits, batch, BLANK)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(args.steps):
        loss = routed()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {loss.item():.2f}")

    compare(dense, routed, list(model.parameters()))


if __name__ == "__main__":
    main()
