"""The counter of waits sees what it is there for."""

import torch
from benchmarks.syncs import Syncs


def test_every_way_to_read_a_value_is_one_wait():
    x, counts = torch.tensor([1.0, 0.0]), torch.tensor([2, 1])
    with Syncs() as syncs:
        x[x > 0], x.nonzero(), x.sum().item(), bool(x.sum() > 0), x.tolist(), float(x[0])
        torch.repeat_interleave(counts), torch.tensor([1, 2]), x.new_tensor([3.0]), x[[0]]
        torch.repeat_interleave(counts, output_size=3), x.clone(), x[counts - 1], x + 1
    assert syncs.operations == [
        "index", "nonzero", "item", "__bool__", "tolist", "__float__", "repeat_interleave",
        "lift_fresh", "lift_fresh", "lift_fresh",
    ]  # fmt: skip
    assert {wait.place for wait in syncs.waits} == {""}
    assert bool(torch.tensor(True))  # the methods are torch's own again
