"""Joiners that cannot be recorded, or that look beyond a site: as dense computes them."""

import pytest
import torch
import transducer_cases as cases
from lattice_oracle import LossKind, transducer_costs
from torch import nn
from transducer_cases import C, D

import panda_icefall
from panda_icefall import transducer_loss
from panda_icefall.routing.joiner_calls import SiteRows

DOUBLE = {"dtype": torch.float64}


@pytest.fixture(autouse=True)
def counters():
    panda_icefall.routing.reset_counters()


def problem(frames=6, states=4):
    g = torch.Generator().manual_seed(3)
    am, lm = (
        torch.randn(2, n, D, generator=g, **DOUBLE).requires_grad_() for n in (frames, states)
    )
    targets = torch.randint(1, C, (2, states - 1), generator=g)
    return am, lm, targets, torch.tensor([frames, 2]), torch.tensor([states - 1, 1])


class Net(nn.Module):
    """Layers that the joiners below share."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(D, C)
        self.lstm = nn.LSTM(D, D, batch_first=True)
        self.conv = nn.Conv2d(D, D, 3, padding=1)
        self.norm = nn.BatchNorm1d(D)
        self.double()

    def head(self, am, lm):
        return self.linear((am.unsqueeze(2) + lm.unsqueeze(1)).tanh())

    def over_sites(self, am, lm):
        x = (am.unsqueeze(2) + lm.unsqueeze(1)).permute(0, 3, 1, 2)
        return self.linear(self.conv(x).permute(0, 2, 3, 1))

    def normed(self, am, lm):
        x = am.unsqueeze(2) + lm.unsqueeze(1)
        return self.linear(self.norm(x.flatten(0, 2)).view_as(x)).roll(0, -1)


def in_place(net, am, lm):
    am.mul_(2)
    return net.head(am, lm).roll(0, -1)


RECORDED, CALLED, DENSE = (1, 0, 0), (0, 1, 0), (0, 0, 1)
JOINERS = {
    "recurrent over frames": (lambda n, e, d: n.head(n.lstm(e)[0], d), RECORDED),
    "mean over frames": (lambda n, e, d: n.head(e + e.mean(1, keepdim=True), d), RECORDED),
    "vector of the utterance": (lambda n, e, d: n.head(e + e.mean(1).unsqueeze(1), d), RECORDED),
    "positions": (lambda n, e, d: n.head(e + torch.arange(e.size(1))[:, None] / 7, d), RECORDED),
    "attention": (lambda n, e, d: n.head(e, (d @ e.transpose(1, 2)).softmax(-1) @ e), DENSE),
    "sorted": (lambda n, e, d: torch.sort(n.head(e, d), dim=-1)[0], CALLED),
    "positions, rolled": (
        lambda n, e, d: n.head(e + torch.arange(e.size(1))[:, None] / 7, d).roll(0, -1), DENSE,
    ),
    "softmax over frames": (lambda n, e, d: n.head(e, d).softmax(1), DENSE),
    "mean over the lattice": (
        lambda n, e, d: n.head(e, d) - n.head(e, d).mean((1, 2), keepdim=True), DENSE,
    ),
    "convolution over the lattice": (lambda n, e, d: n.over_sites(e, d), DENSE),
    "batch norm": (lambda n, e, d: n.normed(e, d), DENSE),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINERS)
def test_values_gradients_and_buffers_are_those_of_dense(name):
    joiner, counts = JOINERS[name]
    found = []
    for is_dense in (False, True):
        net, (am, lm, *lengths) = Net(), problem()
        torch.manual_seed(1)
        if is_dense:
            costs = transducer_costs(joiner(net, am, lm), *lengths, LossKind())
        else:
            net.forward = lambda am, lm, net=net: joiner(net, am, lm)
            costs = transducer_loss(net, am, lm, *lengths, reduction="none", adjoint_tolerance=0.0)
        leaves = [am, lm, *net.parameters()]
        grads = torch.autograd.grad(costs.sum(), leaves, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)]
        found.append([costs.detach(), *grads, *net.buffers()])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
    status = panda_icefall.status()
    assert (status.losses_routed, status.losses_by_calls, status.losses_dense) == counts


def test_a_lattice_that_does_not_fit_says_why_all_of_it_was_asked_for(monkeypatch, caplog):
    net, (am, lm, *lengths) = Net(), problem()

    def whole(rows, joiner):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(SiteRows, "whole", whole)
    with pytest.raises(RuntimeError, match="can't allocate"):
        transducer_loss(net.over_sites, am, lm, *lengths)
    assert "so the joiner is neither recorded nor called for some sites at a time" in caplog.text
    assert panda_icefall.status().losses_dense == 1


def test_what_a_joiner_does_in_place_is_done_once():
    net, (am, lm, *lengths) = Net(), problem()
    am, lm = am.detach(), lm.detach()
    expected = transducer_costs(in_place(net, am.clone(), lm), *lengths, LossKind()).mean()
    given = am.clone()
    loss = transducer_loss(lambda e, d: in_place(net, e, d), given, lm, *lengths)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert torch.equal(given, am)


def raising(am, lm):
    raise KeyError("mine")


BROKEN = {
    "raises": (raising, KeyError, "mine"),
    "gives nothing": (lambda am, lm: None, ValueError, "joiner: got NoneType from <lambda> for"),
    "gives a number": (lambda am, lm: 1.0, ValueError, "joiner: got float from <lambda> for"),
    "gives one row": (
        lambda am, lm: (am.sum() + lm.sum()).expand(1, C), ValueError,
        r"joiner: got \(1, 13\) from <lambda> for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_pruned", [False, True])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_joiner_is_an_error_and_no_fallback_is_logged(what, is_pruned, caplog):
    joiner, kind, message = BROKEN[what]
    am, lm, targets, *lengths = problem()
    loss_of = panda_icefall.pruned_transducer_loss if is_pruned else transducer_loss
    lattice = [torch.arange(3).expand(2, 6, 3)] if is_pruned else lengths
    with pytest.raises(kind, match=message) as caught:
        loss_of(joiner, am, lm, targets, *lattice)
    assert caplog.text == ""
    status = panda_icefall.status()
    assert (status.losses_dense, status.losses_by_calls, status.materialised) == (0, 0, {})
    if what == "raises" and hasattr(caught.value, "__notes__"):
        assert "raised by the joiner, raising, given (" in caught.value.__notes__[-1]


@pytest.mark.parametrize("what", ["sorted", "softmax over frames"])
def test_a_batch_that_is_refused_is_not_logged_as_a_fallback(what, caplog):
    joiner, _ = JOINERS[what]
    net, (am, lm, targets, frames, states) = Net(), problem()
    with pytest.raises(ValueError, match="logit_lengths: got 7 frames for utterance b=0"):
        transducer_loss(lambda e, d: joiner(net, e, d), am, lm, targets, frames + 1, states)
    assert caplog.text == ""
    assert panda_icefall.status().materialised == {}


def test_a_weight_that_changes_before_backward_is_refused():
    net, (am, lm, *lengths) = Net(), problem()
    loss = transducer_loss(lambda e, d: net.head(e, d).roll(0, -1), am, lm, *lengths)
    with torch.no_grad():
        net.linear.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place before backward"):
        loss.backward()


def test_a_lattice_that_is_transposed_is_what_it_is():
    """With as many frames as states nothing but the numbers tells."""
    net, (am, lm, *lengths) = Net(), problem(4, 4)
    joiner = lambda e, d: net.head(e, d).transpose(1, 2)  # noqa: E731
    expected = transducer_costs(joiner(am, lm), *lengths, LossKind()).mean()
    torch.testing.assert_close(
        transducer_loss(joiner, am, lm, *lengths), expected, rtol=1e-12, atol=0
    )
    with pytest.raises(ValueError, match=r"expected logits \[2, 6, 4, C\]"):
        transducer_loss(joiner, *problem())
    with pytest.raises(ValueError, match=r"expected logits \[2, 6, 4, C\]"):
        transducer_loss(lambda e, d: net.head(e, d)[:, :, :-1].roll(0, -1), *problem())


def test_a_pruned_joiner_that_looks_beyond_its_site():
    net, (am, lm, targets, *_) = Net(), problem()
    ranges = torch.arange(3).expand(2, 6, 3) + (torch.arange(6) // 3)[:, None]

    def joiner(e, d):
        x = (e + d).tanh()
        return net.linear(x - x.mean(1, keepdim=True))

    options = {"reduction": "none"}
    costs = panda_icefall.pruned_transducer_loss(joiner, am, lm, targets, ranges, **options)
    from panda_icefall import rnnt

    logits = joiner(*rnnt.do_rnnt_pruning(am, lm, ranges))
    expected = rnnt.rnnt_loss_pruned(logits, targets, ranges, 0, **options)
    torch.testing.assert_close(costs, expected, rtol=1e-12, atol=0)
    assert panda_icefall.status().losses_dense == 1


def test_a_loss_of_ones_own_within_a_model_that_is_applied():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.joiner = cases.PlacingJoiner().double()

        def forward(self, am, lm, *lengths):
            return transducer_loss(lambda e, d: self.joiner(e, d).roll(0, -1), am, lm, *lengths)

    model, (am, lm, *lengths) = Model(), problem()
    expected = model(am, lm, *lengths)
    with panda_icefall.patched(model):
        torch.testing.assert_close(model(am, lm, *lengths), expected, rtol=1e-12, atol=0)
