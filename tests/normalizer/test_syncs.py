"""The host waits for the device once forward and once backward, however many tiles there are.

Every way for Python to learn a value of a tensor, or a size that depends on values, is counted.
"""

import collections

import pytest
import torch
from gates import values
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from panda_icefall.normalizer import RowProgram, RowTable, selected_log_probs

READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu")
SIZED_BY_VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")


class Syncs(TorchDispatchMode):
    """Counts the operations whose result's size, or Python value, depends on tensors' values."""

    def __init__(self, patch):
        super().__init__()
        self.seen = collections.Counter()
        for name in READS:
            patch.setattr(torch.Tensor, name, self._counted(name, getattr(torch.Tensor, name)))

    def _counted(self, name, method):
        def call(tensor, *args, **kwargs):
            self.seen[name] += 1
            return method(tensor, *args, **kwargs)

        return call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in tree_flatten(args[1])[0]
        )
        if by_mask or any(name.startswith(n) for n in SIZED_BY_VALUES):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("workspace_bytes", [3_001, 2**24])
def test_one_sync_forward_and_one_backward(monkeypatch, workspace_bytes):
    rows, weight, bias, ids, adjoints, _ = values()
    leaves = [t.requires_grad_() for t in (rows, weight, bias)]
    index = torch.arange(len(rows)).flip(0)
    live, mask = index % 3 != 0, ids != 0
    adjoints[::2] = 0
    program = RowProgram(tables=(RowTable(leaves[0], index),))
    with monkeypatch.context() as patch, Syncs(patch) as forward:
        logp, _ = selected_log_probs(
            program, *leaves[1:], ids,
            live=live, selected_mask=mask, workspace_bytes=workspace_bytes,
        )  # fmt: skip
    total = (logp * adjoints).sum()
    with monkeypatch.context() as patch, Syncs(patch) as backward:
        torch.autograd.grad(total, leaves)
    assert (forward.seen, backward.seen) == ({"tolist": 1}, {"tolist": 1})


def test_the_count_sees_what_it_is_there_for(monkeypatch):
    x = torch.tensor([1.0, 0.0])
    with monkeypatch.context() as patch, Syncs(patch) as syncs:
        x[x > 0], x.nonzero(), x.sum().item(), bool(x.sum() > 0)
    assert syncs.seen["index"] == syncs.seen["nonzero"] == 1
    assert syncs.seen["item"] == syncs.seen["__bool__"] == 1
