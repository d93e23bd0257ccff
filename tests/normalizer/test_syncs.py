"""The host waits for the device at most once forward and once backward, however many the tiles.

Every way for Python to learn a value of a tensor, or a size that depends on values, is counted.
"""

import collections

import pytest
import torch
from gates import values
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from panda_icefall.normalizer import (
    RowProgram,
    RowTable,
    TileCounters,
    node,
    selected_log_probs,
)

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


def run_counted(monkeypatch, **options):
    """Gradients, and what was read forward and backward."""
    rows, weight, bias, ids, adjoints, _ = values()
    leaves = [t.requires_grad_() for t in (rows, weight, bias)]
    index = torch.arange(len(rows)).flip(0)
    live, mask = index % 3 != 0, ids != 0
    adjoints[::2] = 0
    program = RowProgram(tables=(RowTable(leaves[0], index),))
    with monkeypatch.context() as patch, Syncs(patch) as forward:
        logp, _ = selected_log_probs(
            program, *leaves[1:], ids,
            live=live, selected_mask=mask, **options,
        )  # fmt: skip
    total = (logp * adjoints).sum()
    with monkeypatch.context() as patch, Syncs(patch) as backward:
        grads = torch.autograd.grad(total, leaves)
    return grads, forward.seen, backward.seen


@pytest.mark.parametrize("workspace_bytes", [3_001, 2**24])
def test_one_sync_forward_and_one_backward(monkeypatch, workspace_bytes):
    _, forward, backward = run_counted(monkeypatch, workspace_bytes=workspace_bytes)
    assert (forward, backward) == ({"tolist": 1}, {"tolist": 1})


def test_no_sync_backward_where_nothing_is_left_out_and_waiting_costs(monkeypatch):
    counters = TileCounters()
    options = {"adjoint_tolerance": 0.0, "counters": counters}
    on_cpu, _, seen = run_counted(monkeypatch, **options)
    assert seen == {"tolist": 1}
    before = counters.totals
    monkeypatch.setattr(node, "waits_for_values", lambda device: True)
    grads, forward, seen = run_counted(monkeypatch, **options)
    assert (forward, seen) == ({"tolist": 1}, {})
    torch.testing.assert_close(grads, on_cpu, rtol=1e-12, atol=1e-13)
    after = counters.totals
    assert after.sites_backward - before.sites_backward > before.sites_backward > 0
    assert after.adjoint_mass == pytest.approx(2 * before.adjoint_mass)


def test_a_value_is_waited_for_on_cuda_only():
    assert node.waits_for_values(torch.device("cuda", 0))
    assert not node.waits_for_values(torch.device("cpu"))


def test_the_count_sees_what_it_is_there_for(monkeypatch):
    x = torch.tensor([1.0, 0.0])
    with monkeypatch.context() as patch, Syncs(patch) as syncs:
        x[x > 0], x.nonzero(), x.sum().item(), bool(x.sum() > 0)
    assert syncs.seen["index"] == syncs.seen["nonzero"] == 1
    assert syncs.seen["item"] == syncs.seen["__bool__"] == 1
