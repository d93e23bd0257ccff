"""Joiners as people write them: what is recorded, what is kept, and the dense values of all."""

from collections import Counter

import pytest
import torch
import toy
from joiners import LOGITS, RECORDED, ROWS, Joiner

import panda_icefall

NEEDED = [row for row in ROWS if not row.needs or hasattr(torch.nn.functional, row.needs)]


def run(k2, joiner, data, **arguments):
    torch.manual_seed(5)  # of dropout
    return toy.loss_and_gradients(k2, joiner, data, **arguments)


def assert_same(routed, dense, bound):
    torch.testing.assert_close(routed[0], dense[0], rtol=bound, atol=0)
    for x, y in zip(routed[1], dense[1]):
        assert x.dtype == y.dtype
        assert (x - y).norm() <= bound * y.norm()


@pytest.mark.parametrize("row", NEEDED, ids=lambda row: row.name)
def test_values_gradients_and_counters(k2, row):
    joiner, data = Joiner(row).double(), toy.batch(k2, torch.float64, width=row.width)
    dense = run(k2, joiner, data)
    assert dense[0].isfinite()
    state = torch.get_rng_state()
    with panda_icefall.patched(adjoint_tolerance=0, workspace_mib=0.02):
        routed = run(k2, joiner, data)
        status = panda_icefall.status()
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(routed, dense, 1e-11)
    assert status.materialised == dict(Counter(row.operations))
    assert status.losses_dense == (row.outcome == LOGITS)
    assert status.losses_routed == (row.outcome != LOGITS)
    assert bool(row.operations) == (row.outcome != RECORDED)
