"""A toy transducer batch in icefall's own sequence of k2 calls, for routing and loss tests."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

B, T, S, X, H, C, S_RANGE = 3, 11, 6, 7, 10, 31, 4


@dataclass
class Batch:
    """What a joiner and a pruned loss need: two projections, ranges, symbols, boundary."""

    am: torch.Tensor
    lm: torch.Tensor
    ranges: torch.Tensor
    symbols: torch.Tensor
    boundary: torch.Tensor


def batch(k2: Any, dtype=torch.float32, seed=0, width=X):
    """Ragged: one full utterance, one short, one without any symbol; padding symbol 0 = blank."""
    g = torch.Generator().manual_seed(seed)
    am = torch.randn(B, T, width, generator=g, dtype=dtype).requires_grad_()
    lm = torch.randn(B, S + 1, width, generator=g, dtype=dtype).requires_grad_()
    boundary = torch.tensor([[0, 0, S, T], [0, 0, 3, 7], [0, 0, 0, 5]])
    symbols = torch.randint(1, C, (B, S), generator=g)
    symbols[torch.arange(S) >= boundary[:, 2:3]] = 0
    with torch.no_grad():
        simple_am = torch.randn(B, T, C, generator=g)
        simple_lm = torch.randn(B, S + 1, C, generator=g)
        _, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
            lm=simple_lm, am=simple_am, symbols=symbols, termination_symbol=0,
            boundary=boundary, reduction="sum", return_grad=True,
        )  # fmt: skip
        ranges = k2.get_rnnt_prune_ranges(px_grad, py_grad, boundary, S_RANGE)
    return Batch(am, lm, ranges, symbols, boundary)


class TanhJoiner(nn.Module):
    """zipformer's: ``output_linear(tanh(am + lm))``."""

    def __init__(self, width=X):
        super().__init__()
        self.output_linear = nn.Linear(width, C)

    def forward(self, am, lm, project_input=True):
        assert am.ndim == lm.ndim == 4
        assert am.shape == lm.shape
        return self.output_linear(torch.tanh(am + lm))


class TwoLinearJoiner(nn.Module):
    """pruned_transducer_stateless (v1): ``output_linear(relu(inner_linear(tanh(am + lm))))``."""

    def __init__(self):
        super().__init__()
        self.inner_linear = nn.Linear(X, H)
        self.output_linear = nn.Linear(H, C)

    def forward(self, am, lm):
        return self.output_linear(F.relu(self.inner_linear(torch.tanh(am + lm))))


class ScaledHeadJoiner(nn.Module):
    """A head whose weight is computed, as the older ScaledLinear does."""

    def __init__(self):
        super().__init__()
        self.output_linear = nn.Linear(X, C)
        self.weight_scale = nn.Parameter(torch.tensor(0.3))
        self.bias_scale = nn.Parameter(torch.tensor(-0.2))

    def forward(self, am, lm):
        weight = self.output_linear.weight * self.weight_scale.exp()
        bias = self.output_linear.bias * self.bias_scale.exp()
        return F.linear(torch.tanh(am + lm), weight, bias)


class ProjectingJoiner(nn.Module):
    """Encoder and decoder projections inside the joiner, and a scale on the sum."""

    def __init__(self):
        super().__init__()
        self.encoder_proj = nn.Linear(X, H)
        self.decoder_proj = nn.Linear(X, H)
        self.output_linear = nn.Linear(H, C)

    def forward(self, am, lm, project_input=True):
        hidden = (self.encoder_proj(am) + self.decoder_proj(lm)) * 0.5
        return self.output_linear(hidden.sigmoid())


class HiddenJoiner(nn.Module):
    """``output_linear(hidden(am, lm))`` with the hidden part given."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden
        self.output_linear = nn.Linear(X, C)

    def forward(self, am, lm):
        return self.output_linear(self.hidden(am, lm))


class ContextJoiner(nn.Module):
    """An utterance-level vector, a frame-level one and a shared one added inside the joiner."""

    def __init__(self):
        super().__init__()
        self.context = nn.Parameter(torch.randn(B, X, generator=torch.Generator().manual_seed(5)))
        self.frames = nn.Parameter(
            torch.randn(B, T, 1, X, generator=torch.Generator().manual_seed(6))
        )
        self.shift = nn.Parameter(torch.randn(X, generator=torch.Generator().manual_seed(7)))
        self.output_linear = nn.Linear(X, C, bias=False)

    def forward(self, am, lm):
        hidden = am + lm + self.context.unsqueeze(1).unsqueeze(1)
        hidden = F.silu(self.frames - hidden)
        return self.output_linear(hidden + self.shift)


def pruned_loss(k2: Any, joiner: nn.Module, data: Batch, **arguments):
    """The pruned half of icefall's ``forward_transducer``."""
    am, lm = k2.do_rnnt_pruning(am=data.am, lm=data.lm, ranges=data.ranges)
    logits = joiner(am, lm)
    return k2.rnnt_loss_pruned(
        logits=logits.float() if data.am.dtype != torch.float64 else logits,
        symbols=data.symbols, ranges=data.ranges, termination_symbol=0,
        boundary=data.boundary, **{"reduction": "sum", **arguments},
    )  # fmt: skip


def assert_same(ours: Any, dense: Any, bound: float) -> None:
    """Loss and gradients of the same dtypes, and of the same values up to `bound`."""
    assert ours[0].dtype == dense[0].dtype
    torch.testing.assert_close(ours[0], dense[0], rtol=bound, atol=0)
    assert len(ours[1]) == len(dense[1])
    for x, y in zip(ours[1], dense[1]):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert (x - y).norm() <= bound * y.norm()


def loss_and_gradients(k2: Any, joiner: nn.Module, data: Batch, **arguments):
    """Loss, and gradients of am, lm and every joiner parameter."""
    loss = pruned_loss(k2, joiner, data, **arguments)
    weights = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    leaves = [data.am, data.lm, *joiner.parameters()]
    return loss.detach(), torch.autograd.grad((loss * weights).sum(), leaves)
