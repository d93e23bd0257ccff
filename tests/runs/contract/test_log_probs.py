"""What a pass's pruned losses read, observed in both arms without changing either."""

import importlib

import pytest
import torch
import toy
from dispatch import LargestTensor

import panda_icefall
from panda_icefall import routing
from panda_icefall.runs.contract import passes
from panda_icefall.runs.contract.passes import log_probs_of_logits, observed_losses


@pytest.fixture
def k2():
    yield routing.patched_module()
    panda_icefall.revert()


def logits_of(k2, joiner, data):
    return joiner(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges))


def arguments_of(k2, dtype=torch.float64, **more):
    data = toy.batch(k2)
    g = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(*data.ranges.shape, toy.C, generator=g, dtype=torch.float64)
    return {
        "logits": logits.to(dtype).requires_grad_(), "symbols": data.symbols,
        "ranges": data.ranges, "termination_symbol": 0, "boundary": data.boundary, **more,
    }  # fmt: skip


def assert_close(found, expected, bound):
    for name in ("target", "blank", "log_z"):
        x, y = getattr(found, name), getattr(expected, name)
        assert x.shape == y.shape
        assert not x.requires_grad
        live = found.live
        assert (x - y)[live].norm() <= bound * y[live].norm()
    assert torch.equal(found.live, expected.live)


def observed_dense_and_patched(k2, joiner, data):
    """What both arms read of one pruned loss, and what routing counted in the second."""
    dense, patched = [], []
    with observed_losses(dense.append):
        toy.pruned_loss(k2, joiner, data)
    with panda_icefall.patched(), observed_losses(patched.append):
        toy.pruned_loss(k2, joiner, data)
        status = panda_icefall.status()
    assert len(dense) == len(patched) == 1
    assert torch.allclose(dense[0].value, patched[0].value, rtol=1e-6)
    return dense[0].log_probs, patched[0].log_probs, status


def test_a_dense_loss_is_observed_and_returned_as_it_is(k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)
    original, plain = k2.rnnt_loss_pruned, toy.loss_and_gradients(k2, joiner, data)
    seen = []
    with observed_losses(seen.append):
        observed = toy.loss_and_gradients(k2, joiner, data)
    assert k2.rnnt_loss_pruned is original
    assert torch.equal(observed[0], plain[0])
    assert all(torch.equal(x, y) for x, y in zip(observed[1], plain[1]))
    ((kind, value, found),) = seen
    assert kind == "pruned loss"
    assert torch.equal(value, plain[0])
    assert not value.requires_grad
    logits = logits_of(k2, joiner, data).detach()
    b, t, r = found.live.nonzero()[len(found.live) // 2].tolist()
    state = int(data.ranges[b, t, r])
    target = int(data.symbols[b, state]) if state < toy.S else 0
    expected = logits[b, t, r].log_softmax(-1)
    assert found.target[b, t, r] == pytest.approx(expected[target].item(), rel=1e-12)
    assert found.blank[b, t, r] == pytest.approx(expected[0].item(), rel=1e-12)
    torch.testing.assert_close(found.log_z, logits.logsumexp(-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_arms_report_the_same(k2, dtype):
    torch.manual_seed(1)
    joiner, data = toy.TwoLinearJoiner().to(dtype), toy.batch(k2, dtype)
    dense, routed, status = observed_dense_and_patched(k2, joiner, data)
    assert status.losses_routed == 1
    assert_close(routed, dense, 1e-12 if dtype == torch.float64 else 1e-6)


def test_a_materialised_joiner_is_observed_from_its_tensor_and_counted_once(k2):
    torch.manual_seed(1)
    data = toy.batch(k2)

    class Ascending(toy.TanhJoiner):
        def forward(self, am, lm):
            return torch.cummax(super().forward(am, lm), dim=-1)[0]

    dense, fallen_back, status = observed_dense_and_patched(k2, Ascending(), data)
    assert (status.losses_dense, status.materialised) == (1, {"cummax": 1})
    assert_close(fallen_back, dense, 1e-6)


def test_the_normaliser_of_a_log_softmax_is_reported_as_it_is(k2):
    torch.manual_seed(1)
    data = toy.batch(k2, torch.float64)

    class Softmaxed(toy.TanhJoiner):
        def forward(self, am, lm):
            return super().forward(am, lm).log_softmax(-1)

    dense, routed, status = observed_dense_and_patched(k2, Softmaxed().double(), data)
    assert (status.losses_routed, status.materialised) == (1, {})
    for name in ("target", "blank", "log_z"):
        torch.testing.assert_close(
            getattr(routed, name)[routed.live], getattr(dense, name)[routed.live],
            rtol=1e-12, atol=1e-13,
        )  # fmt: skip
    assert routed.log_z[routed.live].abs().max() < 1e-12


def test_logits_that_routing_gave_up_on_are_observed_too(k2):
    torch.manual_seed(1)
    data = toy.batch(k2)

    class Watched(toy.TanhJoiner):
        def forward(self, am, lm):
            logits = super().forward(am, lm)
            assert logits.isfinite().all()
            return logits

    dense, fallen_back, status = observed_dense_and_patched(k2, Watched(), data)
    assert status.materialised == {"isfinite": 1}
    assert_close(fallen_back, dense, 1e-6)


@pytest.mark.parametrize("use_hat_loss", [False, True])
def test_chunks_of_any_size_give_the_same(k2, monkeypatch, use_hat_loss):
    arguments = arguments_of(k2, use_hat_loss=use_hat_loss)
    whole = log_probs_of_logits(arguments)
    for rows in (0, 1, 7):
        monkeypatch.setattr(passes, "_CHUNK_BYTES", rows * toy.C * 8)
        part = log_probs_of_logits(arguments)
        assert torch.equal(part.target, whole.target)
        assert torch.equal(part.blank, whole.blank)
        assert torch.equal(part.log_z, whole.log_z)


def test_no_copy_of_the_logits_is_made(k2, monkeypatch):
    arguments = arguments_of(k2, torch.float32)
    sites = arguments["ranges"].numel()
    monkeypatch.setattr(passes, "_CHUNK_BYTES", 10 * toy.C * 4)
    with LargestTensor(arguments["logits"]) as largest:
        log_probs_of_logits(arguments)
    assert 3 * sites <= largest.elements <= max(3 * sites, 10 * toy.C)
    assert largest.elements < sites * toy.C // 4


def test_hat_log_probs_are_a_bernoulli_blank_beside_a_softmax(k2):
    arguments = arguments_of(k2, use_hat_loss=True)
    found = log_probs_of_logits(arguments)
    logits = arguments["logits"].detach()
    torch.testing.assert_close(found.blank.exp(), logits[..., 0].sigmoid(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.log_z, logits[..., 1:].logsumexp(-1), rtol=1e-12, atol=0)


def test_half_logits_and_short_ids_are_observed_in_float32_and_without_a_boundary(k2):
    arguments = arguments_of(k2, torch.bfloat16, boundary=None)
    arguments["symbols"] = arguments["symbols"].int()
    found = log_probs_of_logits(arguments)
    assert found.log_z.dtype == torch.float32
    wide = log_probs_of_logits({**arguments, "logits": arguments["logits"].double()})
    assert found.live.all()
    assert_close(found, wide, 1e-6)


def test_an_error_of_the_loss_is_its_own_and_the_function_is_put_back(k2):
    original, seen = k2.rnnt_loss_pruned, []
    with pytest.raises(TypeError, match="no_such_option"), observed_losses(seen.append):
        k2.rnnt_loss_pruned(**arguments_of(k2), no_such_option=1)
    assert seen == []
    assert k2.rnnt_loss_pruned is original


def test_what_somebody_else_put_there_meanwhile_is_left_alone(k2, monkeypatch):
    monkeypatch.setattr(k2, "rnnt_loss_pruned", k2.rnnt_loss_pruned)  # put back afterwards
    with observed_losses(lambda found: None):
        k2.rnnt_loss_pruned = other = lambda: None
    assert importlib.import_module(k2.__name__).rnnt_loss_pruned is other
