"""Whoever observes gets the log-probs of every routed loss; nobody else pays or notices."""

import counted
import pytest
import torch
import toy

from panda_icefall import routing
from panda_icefall.routing.observing import current_observer


def test_each_routed_loss_reports_its_log_probs_once_and_in_order(k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)
    seen = []
    with counted.routed(2), routing.observed(seen.append):
        toy.pruned_loss(k2, joiner, data)
        with torch.no_grad():
            joiner.output_linear.bias += torch.arange(toy.C)
        toy.pruned_loss(k2, joiner, data)
    assert len(seen) == 2
    logits = joiner(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges)).detach()
    found, live = seen[1], seen[1].live
    targets = torch.cat([data.symbols, torch.zeros(toy.B, 1, dtype=torch.int64)], dim=1)
    for b, t, r in live.nonzero().tolist():
        expected = logits[b, t, r].log_softmax(-1)
        target = targets[b, data.ranges[b, t, r]]
        torch.testing.assert_close(found.target[b, t, r], expected[target], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.blank[b, t, r], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.log_z[live], logits.logsumexp(-1)[live], rtol=1e-12, atol=0)
    frames = torch.arange(toy.T)[None, :, None] < data.boundary[:, 3, None, None]
    assert torch.equal(live, frames & (data.ranges <= data.boundary[:, 2, None, None]))
    assert (seen[0].log_z - seen[1].log_z)[live].abs().min() > 1
    for tensor in (found.target, found.blank, found.log_z, found.live):
        assert tensor.shape == data.ranges.shape
        assert not tensor.requires_grad


def test_observing_changes_no_loss_and_no_gradient(k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    with counted.routed(2):
        plain = toy.loss_and_gradients(k2, joiner, data)
        with routing.observed(lambda found: None):
            observed = toy.loss_and_gradients(k2, joiner, data)
    assert torch.equal(plain[0], observed[0])
    assert all(torch.equal(x, y) for x, y in zip(plain[1], observed[1]))


def test_blocks_nest_and_end_with_errors_too(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    outer, inner = [], []
    with counted.routed(2), routing.observed(outer.append):
        with pytest.raises(TypeError, match="no_such_option"), routing.observed(inner.append):
            toy.pruned_loss(k2, joiner, data, no_such_option=1)
        with routing.observed(inner.append):
            toy.pruned_loss(k2, joiner, data)
        toy.pruned_loss(k2, joiner, data)
    assert (len(outer), len(inner)) == (2, 1)
    assert current_observer() is None


def test_losses_of_ordinary_logits_are_not_reported(k2):
    data = toy.batch(k2)
    seen = []
    with counted.routed(0, dense=1), routing.observed(seen.append):
        logits = torch.randn(toy.B, toy.T, toy.S_RANGE, toy.C)
        k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)
    assert seen == []


def test_without_a_boundary_every_site_is_live(k2):
    torch.manual_seed(1)
    data = toy.batch(k2)
    data.boundary = None
    data.ranges = torch.arange(toy.S_RANGE).expand(toy.B, toy.T, -1).contiguous()
    seen = []
    with counted.routed(), routing.observed(seen.append):
        toy.pruned_loss(k2, toy.TanhJoiner(), data)
    assert seen[0].live.all()
