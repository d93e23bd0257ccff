"""`use_hat_loss=True` is routed, also where k2 does not have it."""

import counted
import pytest
import torch
import toy

from panda_icefall import rnnt


@pytest.mark.parametrize("make", [toy.TanhJoiner, toy.TwoLinearJoiner, toy.ContextJoiner])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"reduction": "none", "delay_penalty": 0.1}, {"rnnt_type": "modified"}],
    ids=str,
)
def test_a_hat_joiner_is_routed_exactly(newer_k2, make, arguments):
    torch.manual_seed(1)
    joiner, data = make().double(), toy.batch(newer_k2, torch.float64)
    dense = toy.loss_and_gradients(newer_k2, joiner, data, use_hat_loss=True, **arguments)
    plain = toy.loss_and_gradients(newer_k2, joiner, data, **arguments)
    with counted.routed(adjoint_tolerance=0):
        routed = toy.loss_and_gradients(newer_k2, joiner, data, use_hat_loss=True, **arguments)
    assert (dense[0] - plain[0]).abs().max() > 0.1  # it is another loss
    toy.assert_same(routed, dense, 1e-12)


def test_under_autocast_it_is_at_least_as_accurate_as_the_eager_joiner(newer_k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner(), toy.batch(newer_k2)
    exact = toy.loss_and_gradients(newer_k2, joiner, data, use_hat_loss=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = toy.loss_and_gradients(newer_k2, joiner, data, use_hat_loss=True)
        with counted.routed(adjoint_tolerance=0):
            routed = toy.loss_and_gradients(newer_k2, joiner, data, use_hat_loss=True)
    assert routed[0].dtype == torch.float32
    assert abs(routed[0] - exact[0]) <= 1.25 * abs(dense[0] - exact[0]) + 2**-8 * abs(exact[0])
    for x, y, ref in zip(routed[1], dense[1], exact[1]):
        assert (x - ref).norm() <= 1.25 * (y - ref).norm() + 2**-8 * ref.norm()


def test_another_blank_than_class_0_is_refused(newer_k2):
    data = toy.batch(newer_k2)
    with counted.routed(0):
        am, lm = newer_k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        with pytest.raises(ValueError, match="termination_symbol: got 3, expected 0 with use_hat"):
            newer_k2.rnnt_loss_pruned(
                toy.TanhJoiner()(am, lm), data.symbols, data.ranges, 3, data.boundary,
                use_hat_loss=True,
            )  # fmt: skip


@pytest.mark.k2
def test_a_k2_without_it_gets_it_routed_and_dense(k2):
    data, joiner = toy.batch(k2), toy.TanhJoiner()
    with pytest.raises(TypeError, match="unexpected keyword argument 'use_hat_loss'"):
        toy.pruned_loss(k2, joiner, data, use_hat_loss=True)
    expected = toy.loss_and_gradients(rnnt, joiner, data, use_hat_loss=True)
    logits = joiner(*rnnt.do_rnnt_pruning(data.am, data.lm, data.ranges))
    arguments = (logits, data.symbols, data.ranges, 0, data.boundary)
    with counted.routed(dense=2, adjoint_tolerance=0):
        routed = toy.loss_and_gradients(k2, joiner, data, use_hat_loss=True)
        dense = k2.rnnt_loss_pruned(*arguments, use_hat_loss=True, reduction="none")
        plain = k2.rnnt_loss_pruned(*arguments, use_hat_loss=False, reduction="none")
    torch.testing.assert_close(routed, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        dense, rnnt.rnnt_loss_pruned(*arguments, use_hat_loss=True, reduction="none")
    )
    assert torch.equal(plain, k2.rnnt_loss_pruned(*arguments, reduction="none"))
