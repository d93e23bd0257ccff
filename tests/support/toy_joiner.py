"""The comparison of a toy joiner's routed loss with its dense one."""

import counted
import torch
import toy
from torch import nn


def compare(
    k2, joiner, *, routed=1, materialised=counted.NOTHING, bound=1e-12, dtype=torch.float64, **given
):
    """Loss and gradients as dense gives them, and as many losses routed as said.

    Args:
      joiner: a class of modules, or the hidden part of a joiner: what comes before a linear layer.
      routed: 1, or 0 where the loss is computed from logits.
      materialised: as of `counted.routed`.
      given: further arguments of the pruned loss.
    """
    torch.manual_seed(1)
    is_class = isinstance(joiner, type) and issubclass(joiner, nn.Module)
    joiner = (joiner() if is_class else toy.HiddenJoiner(joiner)).to(dtype)
    data = toy.batch(k2, dtype)
    dense = toy.loss_and_gradients(k2, joiner, data, **given)
    options = {"dense": 1 - routed, "materialised": materialised, "adjoint_tolerance": 0}
    with counted.routed(routed, **options):
        ours = toy.loss_and_gradients(k2, joiner, data, **given)
    toy.assert_same(ours, dense, bound)
