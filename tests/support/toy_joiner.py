"""A joiner around any operation, and the comparison of its routed loss with its dense one."""

import torch
import toy
from torch import nn

import panda_icefall


class HiddenJoiner(nn.Module):
    """``output_linear(hidden(am, lm))`` with the hidden part given."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden
        self.output_linear = nn.Linear(toy.X, toy.C)

    def forward(self, am, lm):
        return self.output_linear(self.hidden(am, lm))


def compare(k2, hidden, routed=1, bound=1e-12, dtype=torch.float64):
    """Loss and gradients as dense gives them; ``routed`` losses of the one, None: not asked."""
    torch.manual_seed(1)
    joiner, data = HiddenJoiner(hidden).to(dtype), toy.batch(k2, dtype)
    dense = toy.loss_and_gradients(k2, joiner, data)
    with panda_icefall.patched(adjoint_tolerance=0):
        ours = toy.loss_and_gradients(k2, joiner, data)
    torch.testing.assert_close(ours[0], dense[0], rtol=bound, atol=0)
    for x, y in zip(ours[1], dense[1]):
        assert (x - y).norm() <= bound * y.norm()
    status = panda_icefall.status()
    assert status.losses_routed + status.losses_dense == 1
    assert routed in (None, status.losses_routed)
