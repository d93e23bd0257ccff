"""Batches that k2's prune ranges refuse although a loss is defined for them train where routed."""

import counted
import pytest
import torch
import toy

import panda_icefall
from panda_icefall import rnnt
from panda_icefall.losses.dense import rnnt_loss_pruned

BATCHES = {
    # name: T of the padded batch, then T_b and S_b of each utterance, S of the padded batch
    "over-padded symbols": (5, [(5, 3), (4, 2)], 9),
    "fewer frames than symbols": (4, [(4, 6), (3, 1)], 6),
    "one frame": (1, [(1, 3), (1, 0)], 3),
    "one symbol": (6, [(6, 1), (2, 0)], 1),
    "no symbol": (6, [(6, 0), (2, 0)], 0),
    "more symbols per frame than the band has states": (6, [(6, 6), (1, 5)], 6),
}


def batch(T, lengths, S):
    g = torch.Generator().manual_seed(T + S)
    B = len(lengths)
    am = torch.randn(B, T, toy.X, generator=g).requires_grad_()
    lm = torch.randn(B, S + 1, toy.X, generator=g).requires_grad_()
    boundary = torch.tensor([[0, 0, s, t] for t, s in lengths])
    symbols = torch.randint(1, toy.C, (B, S), generator=g)
    return toy.Batch(am, lm, None, symbols, boundary)


def step(k2, joiner, data, rnnt_type="regular"):
    """The calls of icefall's models; gives both losses and the ranges."""
    weight = torch.linspace(-1, 1, toy.X * toy.C).view(toy.X, toy.C)
    weight = weight.to(data.am.dtype)
    simple, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
        lm=data.lm @ weight, am=data.am @ weight, symbols=data.symbols, termination_symbol=0,
        lm_only_scale=0.25, am_only_scale=0.0, boundary=data.boundary, rnnt_type=rnnt_type,
        reduction="sum", return_grad=True,
    )  # fmt: skip
    data.ranges = k2.get_rnnt_prune_ranges(px_grad, py_grad, data.boundary, s_range=3)
    return simple, toy.pruned_loss(k2, joiner, data, rnnt_type=rnnt_type)


@pytest.mark.parametrize("name", BATCHES)
def test_a_routed_run_trains_what_is_defined(k2, name):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner(), batch(*BATCHES[name])
    leaves = [data.am, data.lm, *joiner.parameters()]
    with counted.routed():
        simple, loss = step(k2, joiner, data)
        gradients = torch.autograd.grad(simple + loss, leaves)
    assert simple.isfinite()
    wide = toy.TanhJoiner().double()
    wide.load_state_dict(joiner.state_dict())
    am, lm = (x.detach().double().requires_grad_() for x in (data.am, data.lm))
    doubles = toy.Batch(am, lm, data.ranges, data.symbols, data.boundary)
    expected = toy.pruned_loss(rnnt, wide, doubles)
    assert expected.isfinite()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    simple_expected, _ = step(rnnt, wide, batch_of(doubles))
    torch.testing.assert_close(simple.double(), simple_expected, rtol=1e-5, atol=0)
    dense = torch.autograd.grad(simple_expected + expected, [am, lm, *wide.parameters()])
    for ours, theirs in zip(gradients, dense):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def batch_of(data):
    """The same leaves, for a simple loss of their own."""
    return toy.Batch(data.am, data.lm, None, data.symbols, data.boundary)


def test_the_hosts_own_ranges_are_given_where_it_gives_them(k2):
    data = toy.batch(k2)
    g = torch.Generator().manual_seed(3)
    px_grad = torch.rand(toy.B, toy.S, toy.T + 1, generator=g)
    py_grad = torch.rand(toy.B, toy.S + 1, toy.T, generator=g)
    given = (px_grad, py_grad, data.boundary, toy.S_RANGE)
    expected = k2.get_rnnt_prune_ranges(*given)
    with panda_icefall.patched():
        assert torch.equal(k2.get_rnnt_prune_ranges(*given), expected)


@pytest.mark.k2
def test_k2_itself_refuses_such_a_batch_without_a_name():
    import k2

    with pytest.raises(AssertionError):
        step(k2, toy.TanhJoiner(), batch(*BATCHES["fewer frames than symbols"]))


@pytest.mark.parametrize("rnnt_type", ["modified", "constrained"])
def test_an_utterance_that_is_too_short_for_its_lattice_is_named(k2, rnnt_type):
    data = batch(6, [(6, 4), (3, 4)], 4)
    message = (
        rf"boundary: got \[0, 0, 4, 3\] for utterance b=1 .*with rnnt_type='{rnnt_type}', "
        r"expected T >= S, 3 >= 4"
    )
    with panda_icefall.patched(), pytest.raises(ValueError, match=message):
        step(k2, toy.TanhJoiner(), data, rnnt_type)
    assert panda_icefall.status().simple_losses_dense == 0
    with pytest.raises(ValueError, match=message):
        rnnt_loss_pruned(
            torch.zeros(2, 6, 3, toy.C), data.symbols, torch.arange(3).expand(2, 6, 3), 0,
            data.boundary, rnnt_type,
        )  # fmt: skip


def test_what_no_ranges_are_defined_for_is_refused_by_name(k2):
    data = batch(3, [(3, 2), (2, 5)], 5)
    px_grad, py_grad = torch.rand(2, 5, 3), torch.rand(2, 6, 3)  # modified
    with (
        panda_icefall.patched(),
        pytest.raises(ValueError, match=r"boundary: got \[0, 0, 5, 2\] for utterance b=1"),
    ):
        k2.get_rnnt_prune_ranges(px_grad, py_grad, data.boundary, 3)
