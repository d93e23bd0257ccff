"""The comparison of a toy joiner's routed loss with its dense one."""

import torch
import toy

import panda_icefall


def compare(k2, hidden, routed=1, bound=1e-12, dtype=torch.float64):
    """Loss and gradients as dense gives them; ``routed`` losses of the one, None: not asked."""
    torch.manual_seed(1)
    joiner, data = toy.HiddenJoiner(hidden).to(dtype), toy.batch(k2, dtype)
    dense = toy.loss_and_gradients(k2, joiner, data)
    with panda_icefall.patched(adjoint_tolerance=0):
        ours = toy.loss_and_gradients(k2, joiner, data)
    torch.testing.assert_close(ours[0], dense[0], rtol=bound, atol=0)
    for x, y in zip(ours[1], dense[1]):
        assert (x - y).norm() <= bound * y.norm()
    status = panda_icefall.status()
    assert status.losses_routed + status.losses_dense == 1
    assert routed in (None, status.losses_routed)
