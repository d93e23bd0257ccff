"""A toy model whose loss is on the full lattice, in the words of icefall's own models."""

from __future__ import annotations

import random
import sys
import types
from contextlib import contextmanager
from dataclasses import dataclass

import host_losses
import torch
import torch.nn.functional as F
from torch import nn

from panda_icefall import rnnt

B, T, S, D, X, C = 3, 13, 5, 4, 16, 37
SITES = 13 * 6 + 7 * 4 + 5  # of the batch below
HOSTS = ("torchaudio", "k2", "optimized_transducer")


@dataclass
class Batch:
    """Ragged: a full utterance, a short one, one without a symbol; int32 as lhotse and k2 give."""

    x: torch.Tensor
    x_lens: torch.Tensor
    y: torch.Tensor
    y_lens: torch.Tensor


def batch(dtype=torch.float64, seed=0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, D, generator=g, dtype=torch.float64).to(dtype)
    y = torch.randint(1, C, (B, S), generator=g, dtype=torch.int32)
    x_lens, y_lens = torch.tensor([T, 7, 5]).int(), torch.tensor([S, 3, 0]).int()
    y[torch.arange(S) >= y_lens[:, None]] = 0
    return Batch(x, x_lens, y, y_lens)


class Joiner(nn.Module):
    """Of torchaudio's and k2's recipes: every state against every frame."""

    def __init__(self, hidden=torch.tanh):
        super().__init__()
        self.hidden = hidden
        self.output_linear = nn.Linear(X, C)

    def forward(self, encoder_out, decoder_out):
        assert encoder_out.ndim == decoder_out.ndim == 3
        assert encoder_out.size(2) == decoder_out.size(2)
        x = encoder_out.unsqueeze(2) + decoder_out.unsqueeze(1)
        return self.output_linear(self.hidden(x))


class PackedJoiner(Joiner):
    """Of optimized_transducer's recipes: without the padding, utterance after utterance."""

    def forward(self, encoder_out, decoder_out, encoder_out_len, decoder_out_len):
        assert encoder_out.ndim == decoder_out.ndim == 3
        lengths = zip(encoder_out_len.tolist(), decoder_out_len.tolist())
        x = [
            encoder_out[b, :t, :].unsqueeze(1) + decoder_out[b, :s, :].unsqueeze(0)
            for b, (t, s) in enumerate(lengths)
        ]
        x = torch.cat([p.reshape(-1, X) for p in x])
        return self.output_linear(self.hidden(x))


class Transducer(nn.Module):
    """Encoder, decoder and joiner, and the loss of one of the hosts.

    Args:
      host: of ``HOSTS``.
      modified_prob: how often the loss is modified; drawn as in the recipes.
      hidden: what the joiner does to the sum.
    """

    def __init__(self, host, modified_prob=0.0, hidden=torch.tanh):
        super().__init__()
        torch.manual_seed(4)
        self.host, self.modified_prob = host, modified_prob
        self.encoder = nn.Linear(D, X)
        self.decoder = nn.Embedding(C, X)
        self.joiner = (PackedJoiner if host == "optimized_transducer" else Joiner)(hidden)

    def forward(self, data: Batch, **arguments):
        encoder_out, decoder_out = self.encoder(data.x), self.decoder(F.pad(data.y.long(), (1, 0)))
        lengths = (data.x_lens, data.y_lens + 1) if self.host == "optimized_transducer" else ()
        arguments = {"reduction": "sum", **arguments}
        logits = self.joiner(encoder_out, decoder_out, *lengths)
        is_modified = self.modified_prob > 0 and random.random() < self.modified_prob
        if self.host == "k2":
            boundary = torch.zeros((len(data.x), 4), dtype=torch.int64)
            boundary[:, 2], boundary[:, 3] = data.y_lens, data.x_lens
            arguments.setdefault("rnnt_type", "modified" if is_modified else "regular")
            loss = sys.modules["k2"].rnnt_loss(logits, data.y.long(), 0, boundary, **arguments)
        elif self.host == "torchaudio":
            loss = sys.modules["torchaudio"].functional.rnnt_loss(
                logits=logits, targets=data.y, logit_lengths=data.x_lens,
                target_lengths=data.y_lens, blank=0, **arguments,
            )  # fmt: skip
        else:
            import optimized_transducer

            loss = optimized_transducer.transducer_loss(
                logits=logits, targets=data.y, logit_lengths=data.x_lens,
                target_lengths=data.y_lens, blank=0,
                one_sym_per_frame=is_modified, **arguments,
            )  # fmt: skip
        return loss


@contextmanager
def oracles_as_hosts(*, with_packed: bool):
    """k2, torchaudio and perhaps optimized_transducer, with the losses of the oracle."""
    k2, torchaudio = types.ModuleType("k2"), types.ModuleType("torchaudio")
    for name in rnnt.__all__:
        setattr(k2, name, getattr(rnnt, name))
    k2.rnnt_loss = host_losses.k2_loss
    torchaudio.functional = types.ModuleType("torchaudio.functional")
    torchaudio.functional.rnnt_loss = host_losses.torchaudio_loss
    packed = types.ModuleType("optimized_transducer")
    packed.transducer_loss = host_losses.packed_loss
    modules = {m.__name__: m for m in (k2, torchaudio, torchaudio.functional, packed)}
    before = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    if not with_packed:
        del modules["optimized_transducer"]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


def loss_and_gradients(model: nn.Module, data: Batch, seed=7, **arguments):
    """Loss, and the gradients by the features and by every parameter."""
    random.seed(seed)
    data.x.requires_grad_()
    loss = model(data, **arguments)
    weights = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return loss.detach(), torch.autograd.grad((loss * weights).sum(), [data.x, *model.parameters()])


def dense(model: nn.Module, data: Batch, **arguments):
    """The same by the oracle."""
    with oracles_as_hosts(with_packed=True):
        return loss_and_gradients(model, data, **arguments)
