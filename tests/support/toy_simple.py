"""A toy model with simple projections, in icefall's own sequence of calls, for routing tests."""

from typing import Any

import torch
import torch.nn.functional as F
import toy
from torch import nn

D_AM, D_LM = 5, 9
RANK = 2  # of the low-rank layers


class ScaledLinear(nn.Linear):
    """A layer whose weight is computed, as the older recipes' ScaledLinear does."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.weight_scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, input):
        return F.linear(input, self.weight * self.weight_scale.exp(), self.bias)


class LoRALinear(nn.Linear):
    """A layer with a low-rank one added to its result."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.lora_A = nn.Parameter(torch.randn(RANK, self.in_features))
        self.lora_B = nn.Parameter(torch.randn(self.out_features, RANK))

    def forward(self, input):
        result = F.linear(input, self.weight, bias=self.bias)
        return result + input @ self.lora_A.t() @ self.lora_B.t()


class Transducer(nn.Module):
    """Encoder, decoder and both projections; `suffix` names them as the recipes' twins."""

    def __init__(self, kind=nn.Linear, suffix="", seed=1, **kwargs: Any):
        super().__init__()
        torch.manual_seed(seed)
        self.suffix = suffix
        self.encoder = nn.Linear(toy.X, D_AM)
        self.decoder = nn.Linear(toy.X, D_LM)
        setattr(self, f"simple_am_proj{suffix}", kind(D_AM, toy.C, **kwargs))
        setattr(self, f"simple_lm_proj{suffix}", kind(D_LM, toy.C, **kwargs))

    def projections(self, data: toy.Batch):
        """am and lm, deferred or not."""
        am_proj, lm_proj = (getattr(self, f"simple_{n}_proj{self.suffix}") for n in ("am", "lm"))
        return am_proj(self.encoder(data.am)), lm_proj(self.decoder(data.lm))

    def forward(self, k2: Any, data: toy.Batch, between=None, **arguments: Any):
        """The smoothed loss; `between(am, lm)` is done to the projections first."""
        am, lm = self.projections(data)
        if between is not None:
            am, lm = between(am, lm)
        return smoothed_loss(k2, am, lm, data, **arguments)


def smoothed_loss(k2: Any, am: Any, lm: Any, data: toy.Batch, **arguments: Any):
    """As the recipes: with `.float()` and without autocast."""
    if am.dtype != torch.float64:
        am, lm = am.float(), lm.float()
    given = {
        "boundary": data.boundary, "lm_only_scale": 0.25, "am_only_scale": 0.0,
        "reduction": "sum", **arguments,
    }  # fmt: skip
    with torch.autocast("cpu", enabled=False, dtype=torch.bfloat16):
        return k2.rnnt_loss_smoothed(
            lm=lm, am=am, symbols=data.symbols, termination_symbol=0, **given
        )


def loss_and_gradients(k2: Any, model: nn.Module, data: toy.Batch, *args: Any, **kwargs: Any):
    """Loss, and gradients of what goes into the encoder and the decoder and of all parameters."""
    loss = model(k2, data, *args, **kwargs)
    weights = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    leaves = [data.am, data.lm, *(p for p in model.parameters() if p.requires_grad)]
    return loss.detach(), torch.autograd.grad((loss * weights).sum(), leaves)
