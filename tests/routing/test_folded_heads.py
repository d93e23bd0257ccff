"""What follows the last linear layers: one layer with them where it can be, else rows of C numbers.

Either way the loss is routed, and no tensor of all sites is made.
"""

import counted
import pytest
import torch
import toy
from torch import nn

C, X = toy.C, toy.X
MASK = torch.arange(C) % 7 == 3

# Of hidden rows x; own.a and own.b give C logits, own.one gives a single one.
HEADS = {
    "negated twice": lambda x, own: -torch.neg(own.a(x)),
    "subtracted from a number": lambda x, own: torch.rsub(own.a(x), 0.3),
    "two layers of the same rows": lambda x, own: own.a(x) + own.b(x),
    "difference of two layers": lambda x, own: own.a(x) - own.b(x.relu()),
    "two layers without a bias": lambda x, own: own.bare(x) + own.bare(x.cos()),
    "masked, then scaled": lambda x, own: own.a(x).masked_fill(MASK, -3.0) * 0.5,
    "slice of a negative": lambda x, own: (-own.wide(x))[..., 2 : C + 2],
    # No layer is the same as these.
    "product of two layers": lambda x, own: own.a(x) * own.b(x).sigmoid(),
    "product of two linear layers": lambda x, own: own.a(x) * own.b(x),
    "one over a layer": lambda x, own: 1 / (own.a(x).square() + 1),
    "number over a layer": lambda x, own: 5 / own.far(x),
    "number per site and class": lambda x, own: own.a(x) * x[..., :1],
    "masked by one number": lambda x, own: own.a(x).masked_fill(MASK[:1], -3.0),
    "masked by the sites": lambda x, own: own.a(x).masked_fill(x[..., :1] > 0, 0.2),
    "masked rows": lambda x, own: own.a(x).tanh().masked_fill(MASK, -3.0),
    "layers beside rows": lambda x, own: torch.cat([own.one(x), own.wide(x).tanh()], -1)[..., :C],
}


class Joiner(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.a, self.b, self.one, self.wide = (nn.Linear(X, n) for n in (C, C, 1, C + 5))
        self.bare = nn.Linear(X, C, bias=False)
        self.far = nn.Linear(X, C)
        nn.init.constant_(self.far.bias, 9.0)  # no logit is near 0
        self.head = head

    def forward(self, am, lm):
        # What a form does not use has a gradient too.
        unused = sum(0 * p.sum() for p in self.parameters())
        return self.head(torch.tanh(am + lm), self) + unused


@pytest.mark.parametrize("name", HEADS)
def test_what_follows_the_last_layers_is_routed_and_equals_dense(k2, name):
    torch.manual_seed(1)
    joiner, data = Joiner(HEADS[name]).double(), toy.batch(k2, torch.float64)
    dense = toy.loss_and_gradients(k2, joiner, data)
    with counted.routed(adjoint_tolerance=0):
        routed = toy.loss_and_gradients(k2, joiner, data)
    toy.assert_same(routed, dense, 1e-10)
