"""Modules that refuse a recorded tensor, or fail, are run again on tensors, as if never before."""

import counted
import pytest
import torch
import toy
import toy_joiner
from torch import nn

import panda_icefall
from panda_icefall.routing import PandaError


def test_an_error_of_the_joiner_itself_is_raised_as_without(k2, caplog):
    def wrong(am, lm):
        raise RuntimeError(f"no such thing as {type(am).__name__}")

    joiner, data = toy.HiddenJoiner(wrong), toy.batch(k2)
    with panda_icefall.patched(), pytest.raises(RuntimeError, match="no such thing as Tensor"):
        toy.pruned_loss(k2, joiner, data)
    assert panda_icefall.status().materialised == {"HiddenJoiner, which raised RuntimeError": 2}


def test_what_panda_refuses_stays_refused(k2):
    shift = torch.ones(toy.X)

    def hidden(am, lm):
        x = am + lm + shift
        shift.zero_()
        return x.cumsum(-1)

    data = toy.batch(k2)
    with panda_icefall.patched(), pytest.raises(PandaError, match="changed in place"):
        toy.pruned_loss(k2, toy.HiddenJoiner(hidden), data)
    assert not any("raised" in name for name in panda_icefall.status().materialised)


def test_in_place_operations_before_an_error_are_done_once(k2):
    def hidden(am, lm):
        x = am + lm
        am += 1.5
        lm.mul_(2)
        assert isinstance(x, torch.Tensor)
        return torch.tanh(x * am)

    # k2's am is an expanded view, which dense cannot change in place.
    materialised = {"HiddenJoiner, which raised AssertionError": 2}
    toy_joiner.compare(
        k2,
        lambda am, lm: hidden(am.contiguous(), lm),
        routed=0,
        materialised=materialised,
        bound=1e-10,
    )


def test_a_module_that_refuses_a_recorded_tensor_is_asked_once_and_draws_as_dense(k2):
    forwards = []

    class Refusing(toy.TanhJoiner):
        def forward(self, am, lm):
            forwards.append(type(am))
            hidden = torch.nn.functional.dropout(am + lm, 0.3)
            assert isinstance(hidden, torch.Tensor)
            return self.output_linear(torch.tanh(hidden))

    joiner, data = Refusing().double(), toy.batch(k2, torch.float64)

    def two_batches():
        torch.manual_seed(3)
        results = [toy.loss_and_gradients(k2, joiner, data) for _ in range(2)]
        return results, torch.get_rng_state()

    dense, dense_state = two_batches()
    forwards.clear()
    materialised = {"Refusing, which raised AssertionError": 4}
    with counted.routed(0, dense=2, materialised=materialised, adjoint_tolerance=0):
        ours, state = two_batches()
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    assert torch.equal(state, dense_state)
    assert [kind is torch.Tensor for kind in forwards] == [False, True, True]


@pytest.mark.parametrize("kind", [list, dict])
def test_a_module_given_a_list_or_a_dict_that_refuses_gets_tensors(k2, kind):
    class Refusing(nn.Module):
        def forward(self, given):
            am, lm = given.values() if isinstance(given, dict) else given
            assert isinstance(am, torch.Tensor)
            return torch.tanh(am + lm)

    inner = Refusing()

    def hidden(am, lm):
        return inner([am, lm] if kind is list else {"am": am, "lm": lm})

    materialised = {"Refusing, which raised AssertionError": 2}
    toy_joiner.compare(k2, hidden, routed=0, materialised=materialised)


def test_a_second_run_begins_with_the_buffers_of_the_first(k2):
    class Counting(toy.TanhJoiner):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, am, lm):
            self.calls += 1
            assert isinstance(am, torch.Tensor)
            return super().forward(am, lm)

    joiner = Counting()
    with counted.routed(0, dense=1, materialised=None):
        toy.pruned_loss(k2, joiner, toy.batch(k2))
    assert joiner.calls == 1
