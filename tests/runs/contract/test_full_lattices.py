"""The contract of recipes whose loss is on the full lattice."""

import functools
import random
import sys

import host_losses
import pytest
import torch
import toy_full

import panda_icefall
from panda_icefall import routing
from panda_icefall.runs.contract.check import Contract
from panda_icefall.runs.contract.dense_losses import full_losses_in_float64
from panda_icefall.runs.contract.passes import log_probs_of_logits, observed_losses
from panda_icefall.runs.options import PandaOptions


@pytest.fixture(autouse=True)
def hosts():
    """k2 and torchaudio by the oracle; optimized_transducer is the substitute."""
    with toy_full.oracles_as_hosts(with_packed=False), routing.substituted():
        yield
        panda_icefall.revert()


def test_log_probs_of_padded_and_packed_logits_are_those_at_the_sites():
    data = toy_full.batch()
    B, T, states, C = len(data.x), data.x.shape[1], data.y.shape[1] + 1, toy_full.C
    logits = 3 * torch.randn(B, T, states, C, dtype=torch.float64)
    expected = logits.log_softmax(-1)
    live = torch.zeros(B, T, states, dtype=torch.bool)
    for b, (t, s) in enumerate(zip(data.x_lens, data.y_lens)):
        live[b, :t, : s + 1] = True
    boundary = torch.zeros(B, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = data.y_lens, data.x_lens
    lengths = {"targets": data.y, "logit_lengths": data.x_lens, "target_lengths": data.y_lens}
    of_lengths = {**lengths, "blank": 0, "reduction": "sum"}
    of_k2 = {
        "symbols": data.y.long(), "termination_symbol": 0, "boundary": boundary,
        "rnnt_type": "regular", "delay_penalty": 0.0, "reduction": "sum",
    }  # fmt: skip
    for arguments in (
        {"logits": logits, **of_lengths, "clamp": -1},
        {"logits": logits[live], **of_lengths, "one_sym_per_frame": True},
        {"logits": logits, **of_k2},
    ):
        found = log_probs_of_logits(arguments)
        assert torch.equal(found.live, live)
        torch.testing.assert_close(found.blank[live], expected[live][:, 0])
        torch.testing.assert_close(found.log_z[live], logits[live].logsumexp(-1))
        b, t, s = 1, 4, 2
        assert found.target[b, t, s].item() == pytest.approx(
            expected[b, t, s, data.y[b, s]].item(), rel=1e-12
        )


@pytest.mark.parametrize("host", toy_full.HOSTS)
def test_both_arms_are_observed(host):
    model, data = toy_full.Transducer(host), toy_full.batch(torch.float32)
    dense, routed = [], []
    with observed_losses(dense.append):
        toy_full.loss_and_gradients(model, data)
    with panda_icefall.patched(model), observed_losses(routed.append):
        toy_full.loss_and_gradients(model, data)
        assert panda_icefall.status().losses_routed == 1
    ((kind, value, one),), ((other_kind, other_value, other),) = dense, routed
    assert kind == other_kind == "full-lattice loss"
    torch.testing.assert_close(value, other_value)
    assert torch.equal(one.live, other.live)
    for name in ("target", "blank", "log_z"):
        torch.testing.assert_close(getattr(one, name)[one.live], getattr(other, name)[one.live])


@pytest.mark.parametrize("host", toy_full.HOSTS)
def test_a_loss_in_float64_is_that_of_the_oracle(host):
    model, data = toy_full.Transducer(host), toy_full.batch(torch.float32)
    plain = toy_full.dense(model, data)

    def only_float64(*args, **kwargs):
        logits = kwargs["logits"] if "logits" in kwargs else args[0]
        assert logits.dtype == torch.float64
        return host_losses.k2_loss(*args, **kwargs)

    sys.modules["k2"].rnnt_loss = functools.wraps(host_losses.k2_loss)(only_float64)
    with full_losses_in_float64():
        exact = toy_full.loss_and_gradients(model, data)
    assert exact[0].dtype == torch.float32
    for one, other in zip((plain[0], *plain[1]), (exact[0], *exact[1])):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("host", toy_full.HOSTS)
@pytest.mark.parametrize("is_applied", [False, True])
def test_the_contract_holds(host, is_applied):
    model, data = toy_full.Transducer(host, modified_prob=0.5), toy_full.batch(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    contract = Contract(PandaOptions(check_batches=2), torch.device("cpu"))

    def loss_of(model):
        with routing.recording_projections(model):
            return model(data)

    if is_applied:
        panda_icefall.apply()
    random.seed(3)
    for _ in range(2):
        contract.observe(loss_of, model, optimizer, 1.0)
    assert contract.is_complete
    assert contract.result.violations == []
    for batch in contract.result.batches:
        assert [d.group for d in batch.log_probs] == ["full-lattice loss 1"]
        assert batch.log_probs[0].rel_l2 <= 1e-6
        assert batch.log_z[0].rel_l2 <= 1e-6
        assert batch.prune_ranges.frames == 0
        assert {d.group for d in batch.gradients} == {"encoder", "decoder", "joiner"}
        assert batch.has_pruned_gradient
