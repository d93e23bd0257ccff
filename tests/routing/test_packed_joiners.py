"""Packed joiners that treat each utterance by itself before they join them by ``cat``."""

import counted
import pytest
import torch
import torch.nn.functional as F
import toy
import toy_full
from torch import nn

import panda_icefall

# Ours stands in for optimized_transducer, which is not installed.
pytestmark = pytest.mark.usefixtures("oracle_hosts")


class Each(nn.Module):
    """What is done to the rows of utterance b, with parameters by name.

    Args:
      function: of the rows, b and this module.
      parameters: their sizes.
    """

    def __init__(self, function, **parameters):
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(2)
        for name, size in parameters.items():
            values = torch.randn(size, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(0.5 * values))

    def forward(self, x, b):
        return self.function(x, b, self)


class PackedLater(toy_full.Joiner):
    """Without the padding; the utterances are joined after ``each``."""

    def __init__(self, each):
        super().__init__()
        self.each = each

    def forward(self, encoder_out, decoder_out, encoder_out_len, decoder_out_len):
        parts = []
        for b, (t, s) in enumerate(zip(encoder_out_len.tolist(), decoder_out_len.tolist())):
            x = encoder_out[b, :t].unsqueeze(1) + decoder_out[b, :s].unsqueeze(0)
            parts.append(self.each(x.reshape(-1, toy_full.X), b))
        return self.output_linear(self.hidden(torch.cat(parts)))


def model_with(each):
    model = toy_full.Transducer("optimized_transducer")
    model.joiner = PackedLater(each)
    return model.double()


X = toy_full.X
ALIKE = {
    "a function": lambda: Each(lambda x, b, own: torch.tanh(x)),
    "a number": lambda: Each(lambda x, b, own: 0.7 * x),
    "an option by name": lambda: Each(lambda x, b, own: F.softplus(x, beta=2.0)),
    "a layer": lambda: Each(lambda x, b, own: F.linear(x, own.w, own.b), w=(X, X), b=(X,)),
    "a vector": lambda: Each(lambda x, b, own: torch.tanh(x * own.v) + x, v=(X,)),
    "a norm": lambda: Each(lambda x, b, own: F.layer_norm(x, (X,), own.w, own.b), w=(X,), b=(X,)),
}


@pytest.mark.parametrize("name", ALIKE)
def test_utterances_that_are_treated_alike_are_joined_and_routed(name):
    model, data = model_with(ALIKE[name]()), toy_full.batch()
    dense = toy_full.dense(model, data)
    with counted.routed(model=model, adjoint_tolerance=0):
        routed = toy_full.loss_and_gradients(model, data)
    toy.assert_same(routed, dense, 1e-11)


def in_own_grad_mode(x, b, own):
    with torch.set_grad_enabled(b != 1):
        return torch.tanh(x)


APART = {
    "functions": lambda: Each(lambda x, b, own: (torch.tanh, torch.relu, F.silu)[b](x)),
    "numbers": lambda: Each(lambda x, b, own: (b + 1) * x),
    "options": lambda: Each(lambda x, b, own: F.softplus(x, beta=1.0 + b)),
    "layers": lambda: Each(lambda x, b, own: F.linear(x, own.w[b]), w=(3, X, X)),
    "vectors": lambda: Each(lambda x, b, own: x * own.v[b], v=(3, X)),
    "a layer for one of them": lambda: Each(
        lambda x, b, own: F.linear(x, own.w) if b == 1 else torch.tanh(x), w=(X, X)
    ),
    "a table beside a function": lambda: Each(lambda x, b, own: x if b else torch.tanh(x)),
    "grad modes": lambda: Each(in_own_grad_mode),
}


@pytest.mark.parametrize("name", APART)
def test_utterances_that_are_treated_differently_are_joined_as_tensors(name):
    model, data = model_with(APART[name]()), toy_full.batch()
    dense = toy_full.dense(model, data)
    with counted.routed(losses=0, dense=1, materialised=None, model=model):
        found = toy_full.loss_and_gradients(model, data)
        assert "cat" in panda_icefall.status().materialised
    toy.assert_same(found, dense, 1e-11)
