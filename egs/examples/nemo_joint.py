"""A joint like NeMo's RNNTJoint, blank last; with --tdt it predicts durations too.

    python egs/examples/nemo_joint.py
    python egs/examples/nemo_joint.py --tdt

Source of the joint's form: NeMo, nemo/collections/asr/modules/rnnt.py.
"""

from __future__ import annotations

import argparse

import torch
from comparing import compare, dense_loss, made_up_batch, measured
from torch import Tensor, nn

import panda_icefall

DURATIONS = [0, 1, 2, 3, 4]


class Joint(nn.Module):
    """Projections, their sum at every frame and state, and the layers after it.

    Args:
      tokens: without the blank, which is the last class.
      num_extra_outputs: classes of durations, after the blank.
    """

    def __init__(
        self, width: int, joint_hidden: int, tokens: int, num_extra_outputs: int, dropout: float
    ) -> None:
        super().__init__()
        self.enc = nn.Linear(width, joint_hidden)
        self.pred = nn.Linear(width, joint_hidden)
        self.joint_net = nn.Sequential(
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(joint_hidden, tokens + 1 + num_extra_outputs),
        )

    def forward(self, f: Tensor, g: Tensor) -> Tensor:
        """Logits ``[B, T, U + 1, C]`` of ``[B, T, D]`` and ``[B, U + 1, D]``."""
        f = self.enc(f)
        g = self.pred(g)
        return self.joint_net(f.unsqueeze(dim=2) + g.unsqueeze(dim=1))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--tdt", action="store_true", help="token-and-duration loss")
    p.add_argument("--tokens", type=int, default=2000)
    p.add_argument("--dropout", type=float, default=0.2)
    args = p.parse_args()

    torch.manual_seed(0)
    batch = made_up_batch(B=4, U=20, C=args.tokens, D=64)
    durations = DURATIONS if args.tdt else None
    joint = Joint(64, 64, args.tokens, len(durations or []), args.dropout)
    encoder_out = batch.frames.requires_grad_()
    decoder_out = torch.randn(4, 21, 64, requires_grad=True)
    leaves = [encoder_out, decoder_out, *joint.parameters()]

    def routed() -> Tensor:
        return panda_icefall.transducer_loss(
            joint,
            encoder_out,
            decoder_out,
            batch.symbols,
            batch.frame_lengths,
            batch.symbol_lengths,
            blank=-1,  # the last token; durations are not counted
            durations=durations,
        )

    def dense() -> Tensor:
        return dense_loss(joint(encoder_out, decoder_out), batch, blank=args.tokens)

    if args.tdt:
        loss, _, peak = measured(routed, leaves)
        print(f"routed: TDT loss {loss:.5f}, peak {peak:.1f} MiB")
    else:
        compare(dense, routed, leaves)


if __name__ == "__main__":
    main()
