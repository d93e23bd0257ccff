"""A joint like ESPnet's JointNetwork, which is called with [B, T, 1, D] and [B, 1, U + 1, D].

    python egs/examples/espnet_joint.py

Source of the joint's form: ESPnet, espnet2/asr_transducer/joint_network.py.
"""

from __future__ import annotations

import argparse

import torch
from comparing import compare, dense_loss, made_up_batch
from torch import Tensor, nn

import panda_icefall

BLANK = 0


class JointNetwork(nn.Module):
    """Projections, tanh of their sum, output layer."""

    def __init__(self, width: int, joint_space_size: int, vocab_size: int) -> None:
        super().__init__()
        self.lin_enc = nn.Linear(width, joint_space_size)
        self.lin_dec = nn.Linear(width, joint_space_size, bias=False)
        self.lin_out = nn.Linear(joint_space_size, vocab_size)
        self.joint_activation = nn.Tanh()

    def forward(self, enc_out: Tensor, dec_out: Tensor) -> Tensor:
        """Logits ``[B, T, U + 1, C]`` of ``[B, T, 1, D]`` and ``[B, 1, U + 1, D]``."""
        return self.lin_out(self.joint_activation(self.lin_enc(enc_out) + self.lin_dec(dec_out)))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--vocab-size", type=int, default=2000)
    args = p.parse_args()

    torch.manual_seed(0)
    batch = made_up_batch(B=4, U=20, C=args.vocab_size, D=64)
    joint = JointNetwork(64, 64, args.vocab_size)
    encoder_out = batch.frames.requires_grad_()
    decoder_out = torch.randn(4, 21, 64, requires_grad=True)

    def routed() -> Tensor:
        return panda_icefall.transducer_loss(
            joint,
            encoder_out.unsqueeze(2),
            decoder_out.unsqueeze(1),
            batch.symbols,
            batch.frame_lengths,
            batch.symbol_lengths,
            blank=BLANK,
        )

    def dense() -> Tensor:
        return dense_loss(joint(encoder_out.unsqueeze(2), decoder_out.unsqueeze(1)), batch, BLANK)

    compare(dense, routed, [encoder_out, decoder_out, *joint.parameters()])


if __name__ == "__main__":
    main()
