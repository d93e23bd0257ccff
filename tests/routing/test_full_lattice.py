"""Recipes whose loss is on the full lattice: their joiners are recorded while they train."""

import contextlib
import logging
import random
import sys
from dataclasses import replace

import counted
import pytest
import torch
import toy
import toy_full
import toy_simple
from dispatch import LargestTensor
from ranks import from_two_ranks, group_of_two
from torch import nn

import panda_icefall
from panda_icefall.losses import of_logits
from panda_icefall.routing import PandaError

pytestmark = pytest.mark.usefixtures("oracle_hosts")


CASES = [
    *((host, {}) for host in toy_full.HOSTS),
    ("torchaudio", {"hidden": torch.relu}),
    ("torchaudio", {"hidden": nn.Sequential(nn.Linear(toy_full.X, toy_full.X), nn.SiLU())}),
    ("k2", {"modified_prob": 1.0}),
    ("optimized_transducer", {"modified_prob": 1.0}),
    ("optimized_transducer", {"hidden": nn.LayerNorm(toy_full.X)}),
]


@pytest.mark.parametrize(("host", "options"), CASES)
def test_routed_losses_and_gradients_are_those_of_the_oracle(host, options):
    model, data = toy_full.Transducer(host, **options).double(), toy_full.batch()
    dense = toy_full.dense(model, data)
    with counted.routed(model=model, adjoint_tolerance=0):
        before = panda_icefall.status()
        routed = toy_full.loss_and_gradients(model, data)
        counted_sites = panda_icefall.status() - before
    toy.assert_same(routed, dense, 1e-11)
    assert counted_sites.sites == counted_sites.sites_evaluated == toy_full.SITES


@pytest.mark.parametrize("host", toy_full.HOSTS)
def test_no_tensor_has_a_row_for_each_site(host):
    """With sites enough, and a workspace that holds a few of them."""
    model, data = toy_full.Transducer(host), toy_full.batch(torch.float32)
    with counted.routed(model=model, workspace_mib=2**-8), LargestTensor() as largest:
        toy_full.loss_and_gradients(model, data)
    assert largest.elements < toy_full.SITES * min(toy_full.X, toy_full.C) / 2


@pytest.mark.parametrize("host", toy_full.HOSTS)
def test_validation_gives_the_loss_without_gradients(host):
    model, data = toy_full.Transducer(host).double(), toy_full.batch()
    expected, _ = toy_full.dense(model, data)
    with counted.routed(model=model), torch.no_grad():
        loss = model.eval()(data)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("host", toy_full.HOSTS)
@pytest.mark.parametrize("kind", ["no symbols", "one frame"])
def test_the_shortest_batches_are_routed(host, kind):
    model, data = toy_full.Transducer(host).double(), toy_full.batch()
    if kind == "no symbols":
        data = replace(data, y=data.y[:, :0], y_lens=0 * data.y_lens)
    else:
        data = replace(data, x=data.x[:, :1], x_lens=0 * data.x_lens + 1)
    dense = toy_full.dense(model, data)
    with counted.routed(model=model, adjoint_tolerance=0):
        toy.assert_same(toy_full.loss_and_gradients(model, data), dense, 1e-11)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_reductions_and_clamp_are_torchaudios(reduction):
    model, data = toy_full.Transducer("torchaudio").double(), toy_full.batch()
    options = {"reduction": reduction, "clamp": 0.05}
    dense = toy_full.dense(model, data, **options)
    with counted.routed(model=model, adjoint_tolerance=0):
        toy.assert_same(toy_full.loss_and_gradients(model, data, **options), dense, 1e-11)


@pytest.mark.parametrize("host", ["k2", "optimized_transducer"])
def test_a_batch_is_modified_by_the_same_draw(host):
    model, data = toy_full.Transducer(host, modified_prob=0.5).double(), toy_full.batch()
    values = set()
    for seed in range(6):
        dense = toy_full.dense(model, data, seed=seed)
        drawn = random.getstate()
        with counted.routed(model=model, adjoint_tolerance=0):
            toy.assert_same(toy_full.loss_and_gradients(model, data, seed=seed), dense, 1e-11)
        assert random.getstate() == drawn
        values.add(round(dense[0].item(), 6))
    assert len(values) == 2


def test_autocast_to_bfloat16_errs_no_more_than_without_panda():
    model, data = toy_full.Transducer("torchaudio"), toy_full.batch(torch.float32)
    exact = toy_full.dense(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        dense = toy_full.dense(model, data)
        with counted.routed(model=model):
            routed = toy_full.loss_and_gradients(model, data)
    for ours, theirs, reference in zip(routed[1], dense[1], exact[1]):
        error, own = ((x.float() - reference).norm() for x in (ours, theirs))
        assert error <= 2 * own + 2**-8 * reference.norm()


@pytest.mark.parametrize("host", toy_full.HOSTS)
def test_decoding_calls_the_joiner_as_it_is(host):
    model, data = toy_full.Transducer(host).double(), toy_full.batch()
    panda_icefall.apply(model)
    model(data)
    lengths = (torch.tensor([1]), torch.tensor([1])) if "optimized" in host else ()
    am, lm = (torch.randn(1, 1, toy_full.X, dtype=torch.float64) for _ in range(2))
    logits = model.joiner(am, lm, *lengths)
    assert type(logits) is torch.Tensor
    expected = torch.tanh(am + lm).flatten() @ model.joiner.output_linear.weight.T
    torch.testing.assert_close(logits.flatten(), expected + model.joiner.output_linear.bias)
    assert panda_icefall.status().materialised == {}


class Decoding(toy_full.Transducer):
    """Looks one frame ahead, with the joiner, before it trains."""

    def forward(self, data, **arguments):
        frame = self.encoder(data.x[:, :1]).unsqueeze(2)  # [B, 1, 1, X], as beam searches have it
        state = self.decoder(data.y[:, :1].long()).unsqueeze(1)
        logits = self.joiner.output_linear(torch.tanh(frame + state))
        assert type(logits) is torch.Tensor
        return super().forward(data, **arguments)


def test_what_else_a_forward_computes_is_computed():
    model, data = Decoding("torchaudio").double(), toy_full.batch()
    dense = toy_full.dense(model, data)
    with counted.routed(model=model, adjoint_tolerance=0):
        toy.assert_same(toy_full.loss_and_gradients(model, data), dense, 1e-11)


class Outer(nn.Module):
    """A model within a model, with a second joiner that is used in its stead."""

    def __init__(self, host):
        super().__init__()
        self.transducer = toy_full.Transducer(host)
        self.transducer.joiner_giga = self.transducer.joiner
        self.transducer.joiner = toy_full.Joiner()
        self.is_second = True

    def forward(self, data):
        inner = self.transducer
        first, second = inner.joiner, inner.joiner_giga
        try:
            inner.joiner, inner.joiner_giga = (second, first) if self.is_second else (first, second)
            return inner(data)
        finally:
            inner.joiner, inner.joiner_giga = first, second


@pytest.mark.parametrize("is_second", [False, True])
def test_models_within_models_and_second_joiners_are_recorded(is_second):
    model, data = Outer("torchaudio").double(), toy_full.batch()
    model.is_second = is_second
    with toy_full.oracles_as_hosts(with_packed=True):
        loss = model(data)
        loss.backward()
        dense = loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    with counted.routed(model=nn.Sequential(model), adjoint_tolerance=0):
        loss = model(data)
        loss.backward()
    routed = loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]
    toy.assert_same(routed, dense, 1e-11)


def train_in_ddp(rank, port, host, queue):
    with toy_full.oracles_as_hosts(with_packed=False), group_of_two(rank, port):
        data = toy_full.batch(seed=rank)
        plain = toy_full.Transducer(host).double()
        model = nn.parallel.DistributedDataParallel(plain)
        model(data).backward()  # of the oracle
        dense = [p.grad.clone() for p in plain.parameters()]
        model.zero_grad()
        with counted.routed(model=model, adjoint_tolerance=0):
            model(data).backward()
        errors = [(p.grad - g).norm() / g.norm() for p, g in zip(plain.parameters(), dense)]
        if rank == 0:
            queue.put(max(map(float, errors)))


def test_ddp_reduces_the_gradients_of_the_oracle():
    assert from_two_ranks(train_in_ddp, "torchaudio") <= 1e-11


def sorted_rows(x):
    return x.sort(dim=-1).values


@pytest.mark.parametrize("host", toy_full.HOSTS)
def test_a_joiner_whose_rows_cannot_be_recorded_is_recorded_from_there(host):
    model, data = toy_full.Transducer(host, hidden=sorted_rows).double(), toy_full.batch()
    dense = toy_full.dense(model, data)
    with counted.routed(materialised={"sort": 1}, model=model, adjoint_tolerance=0):
        routed = toy_full.loss_and_gradients(model, data)
    toy.assert_same(routed, dense, 1e-11)


def with_sorted_logits(host):
    model = toy_full.Transducer(host).double()
    model.joiner.register_forward_hook(lambda module, given, logits: sorted_rows(logits))
    return model


@pytest.mark.parametrize("host", toy_full.HOSTS)
def test_a_joiner_that_cannot_be_recorded_trains_as_without_panda(host):
    model, data = with_sorted_logits(host), toy_full.batch()
    dense = toy_full.dense(model, data)
    with counted.routed(losses=0, dense=1, materialised=None, model=model):
        routed = toy_full.loss_and_gradients(model, data)
        assert "sort" in panda_icefall.status().materialised
    toy.assert_same(routed, dense, 1e-11)


@pytest.mark.parametrize("host", toy_full.HOSTS)
def test_strict_raises_where_the_loss_would_be_dense(host):
    data, model = toy_full.batch(), with_sorted_logits(host)
    panda_icefall.apply(model, strict=True)
    message = r"strict=True: \w+\.\w+_loss would be computed as without PANDA: .*by sort \(1 times"
    with pytest.raises(PandaError, match=message):
        model(data)
    recordable = toy_full.Transducer(host).double()
    panda_icefall.apply(recordable, strict=True)
    recordable(data)


LOG_PROBS = {
    "torchaudio": {"fused_log_softmax": False},
    "optimized_transducer": {"from_log_softmax": True},
}


@pytest.mark.parametrize("host", LOG_PROBS)
def test_log_probs_instead_of_logits_are_routed(host):
    """A log_softmax of log-probs changes nothing."""
    data, model = toy_full.batch(), toy_full.Transducer(host, hidden=lambda x: x).double()
    model.joiner.output_linear = nn.Sequential(model.joiner.output_linear, nn.LogSoftmax(-1))
    with toy_full.oracles_as_hosts(with_packed=True):
        sys.modules["torchaudio"].functional.rnnt_loss = of_logits.rnnt_loss
        expected = toy_full.loss_and_gradients(model, data)
        with counted.routed(model=model, adjoint_tolerance=0):
            loss = toy_full.loss_and_gradients(model, data, **LOG_PROBS[host])
    toy.assert_same(loss, expected, 1e-11)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({}, "log-probs that are no log_softmax"), ({"clamp": 0.1}, "clamp of log-probs")],
)
def test_other_log_probs_go_to_the_host(options, reason):
    host = sys.modules["torchaudio"].functional
    host.rnnt_loss = of_logits.rnnt_loss
    data, model = toy_full.batch(), toy_full.Transducer("torchaudio").double()
    if options:
        layer = model.joiner.output_linear
        model.joiner.output_linear = nn.Sequential(layer, nn.LogSoftmax(-1))
        refused = pytest.raises(ValueError, match=r"clamp: got 0\.1 for log-probs")
    else:
        refused = contextlib.nullcontext()
    with counted.routed(losses=0, dense=1, materialised={reason: 1}, model=model), refused:
        model(data, fused_log_softmax=False, **options)


def test_symbols_of_another_batch_are_refused():
    for host, name in (("k2", "symbols"), ("torchaudio", "targets")):
        model, data = toy_full.Transducer(host).double(), toy_full.batch()
        model.decoder.register_forward_hook(lambda module, given, result: result[:, :-1])
        panda_icefall.apply(model)
        message = rf"{name}: got shape \(3, 5\), expected \[B, S\] = \[3, 4\] for logits"
        with pytest.raises(ValueError, match=message):
            model(data)


def test_a_loss_of_ordinary_logits_is_said_once(caplog):
    model, data = toy_full.Transducer("torchaudio"), toy_full.batch(torch.float32)
    model.network = model._modules.pop("joiner")
    type(model).joiner = property(lambda self: self.network)
    try:
        with counted.routed(losses=0, dense=2, model=model):
            for _ in range(2):
                model(data)
    finally:
        del type(model).joiner
    said = [r.getMessage() for r in caplog.records if "was given ordinary logits" in r.getMessage()]
    assert len(said) == 1


def test_lengths_that_the_joiner_was_not_given_are_refused():
    model, data = toy_full.Transducer("optimized_transducer").double(), toy_full.batch()
    panda_icefall.apply(model)
    given = model.joiner.forward

    def one_frame_less(am, lm, frames, states):
        return given(am, lm, frames - 1, states)

    model.joiner.forward = one_frame_less
    message = r"logits: got \[12, 6, 4\] frames .*, expected logit_lengths \[13, 7, 5\]"
    with pytest.raises(ValueError, match=message):
        model(data)


def test_a_model_without_a_simple_loss_is_told_nothing_of_projections(caplog):
    caplog.set_level(logging.WARNING)
    model, data = toy_full.Transducer("torchaudio").double(), toy_full.batch()
    with counted.routed(model=model):
        model(data)
    assert caplog.records == []


def test_pruned_recipes_with_a_joiner_are_routed_beside():
    """Their joiner is recorded by its inputs, which were pruned."""
    k2 = sys.modules["k2"]
    model = toy_simple.Transducer()
    model.joiner = toy.TanhJoiner()
    data = toy.batch(k2)
    with counted.routed(model=model):
        toy.pruned_loss(k2, model.joiner, data).backward()
