"""torch.compile around a model, its parts, or a training step: our part runs as it is."""

import contextlib
import shutil

import pytest
import torch
import torch.nn.functional as F
import toy
from torch import nn

import panda_icefall
from panda_icefall.routing import patch

pytestmark = pytest.mark.skipif(
    not hasattr(torch, "compile"), reason="needs torch.compile: runs in the modern lane"
)

D = 8


class Transducer(nn.Module):
    """A recipe's model: encoder, decoder, simple projections, joiner; both losses."""

    def __init__(self, k2):
        super().__init__()
        torch.manual_seed(3)
        self.k2 = k2
        self.encoder, self.decoder = nn.Linear(D, D), nn.Embedding(toy.C, D)
        self.simple_am_proj, self.simple_lm_proj = nn.Linear(D, toy.C), nn.Linear(D, toy.C)
        self.encoder_proj, self.decoder_proj = nn.Linear(D, toy.X), nn.Linear(D, toy.X)
        self.joiner = toy.TanhJoiner()

    def forward(self, x, symbols, boundary):
        am, lm = torch.tanh(self.encoder(x)), self.decoder(F.pad(symbols, (1, 0)))
        common = {
            "symbols": symbols, "termination_symbol": 0, "boundary": boundary, "reduction": "sum",
        }  # fmt: skip
        simple, (px_grad, py_grad) = self.k2.rnnt_loss_smoothed(
            lm=self.simple_lm_proj(lm).float(), am=self.simple_am_proj(am).float(),
            lm_only_scale=0.25, am_only_scale=0.0, return_grad=True, **common,
        )  # fmt: skip
        ranges = self.k2.get_rnnt_prune_ranges(px_grad, py_grad, boundary, toy.S_RANGE)
        am, lm = self.k2.do_rnnt_pruning(self.encoder_proj(am), self.decoder_proj(lm), ranges)
        logits = self.joiner(am, lm, project_input=False)
        pruned = self.k2.rnnt_loss_pruned(logits=logits.float(), ranges=ranges, **common)
        return simple, pruned


def batch(T, S):
    g = torch.Generator().manual_seed(T)
    symbols = torch.randint(1, toy.C, (3, S), generator=g)
    boundary = torch.tensor([[0, 0, S, T], [0, 0, S - 1, T - 2], [0, 0, 0, T - 1]])
    return torch.randn(3, T, D, generator=g), symbols, boundary


def losses_and_gradients(model, forward, data):
    model.zero_grad()
    losses = forward(*data)
    (0.5 * losses[0] + losses[1]).backward()
    return [loss.detach() for loss in losses], [p.grad.clone() for p in model.parameters()]


BATCHES = [batch(11 + n, 5 + n % 3) for n in range(5)]


@pytest.fixture
def counted():
    """Graphs that are handed to the backend, by any name of a backend."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    yield CompileCounterWithBackend
    torch._dynamo.reset()


@pytest.fixture
def model(k2):
    return Transducer(k2)


def eager_results(model, way):
    """Of all batches; leaves PANDA applied that way, and its counters at 0."""
    if way != "not applied":
        panda_icefall.apply(model=model if way == "with projections" else None)
    results = [losses_and_gradients(model, model, data) for data in BATCHES]
    patch.reset_counters()
    return results


def check_all_routed():
    status = panda_icefall.status()
    assert status.losses_routed == status.simple_losses_routed == len(BATCHES)
    assert status.losses_dense == status.simple_losses_dense == 0
    assert status.materialised == {}


@pytest.mark.parametrize("way", ["not applied", "applied", "with projections"])
def test_a_compiled_model_gives_the_eager_losses_and_gradients_at_any_shape(counted, model, way):
    expected = eager_results(model, way)
    backend = counted("aot_eager")
    compiled = torch.compile(model, backend=backend)
    for data, eager in zip(BATCHES, expected):
        torch.testing.assert_close(losses_and_gradients(model, compiled, data), eager)
    if way != "not applied":
        check_all_routed()
    # Encoder and what follows: each once for the first shape, once for all others.
    assert backend.frame_count <= 6


def test_inductor_gives_the_eager_losses_and_gradients(counted, model):
    assert shutil.which("g++") or shutil.which("clang++"), "inductor needs a C++ compiler"
    expected = eager_results(model, "applied")[0]
    compiled = torch.compile(model, backend="inductor")
    torch.testing.assert_close(losses_and_gradients(model, compiled, BATCHES[0]), expected)
    assert panda_icefall.status().losses_routed == 1


@pytest.mark.parametrize("part", ["joiner", "encoder", "simple_am_proj", "decoder_proj"])
def test_a_model_with_a_compiled_part_is_routed(counted, model, part):
    expected = eager_results(model, "not applied")
    backend = counted("aot_eager")
    setattr(model, part, torch.compile(getattr(model, part), backend=backend))
    panda_icefall.apply(model=model)
    for data, eager in zip(BATCHES, expected):
        found = losses_and_gradients(model, model, data)
        torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)
    check_all_routed()
    assert backend.frame_count <= 2


def test_a_compiled_training_step_runs_our_backward_as_it_is(counted, model):
    expected = eager_results(model, "with projections")[0]
    backend = counted("aot_eager")
    step = torch.compile(losses_and_gradients, backend=backend)
    torch.testing.assert_close(step(model, model, BATCHES[0]), expected)
    assert panda_icefall.status().losses_routed == 1
    traced = [node.stack_trace or "" for graph in backend.graphs for node in graph.graph.nodes]
    assert traced
    assert not any("panda_icefall/" in where for where in traced)


def test_a_compiled_model_follows_apply_and_revert(counted, model):
    expected = eager_results(model, "not applied")[0]
    compiled = torch.compile(model, backend=counted("aot_eager"))
    for is_applied in (False, True, False):
        patch.reset_counters()
        with panda_icefall.patched(model=model) if is_applied else contextlib.nullcontext():
            found = losses_and_gradients(model, compiled, BATCHES[0])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert panda_icefall.status().losses_routed == is_applied
