"""Routed losses beside dense ones, by utterance: equal as they are, far apart with a bug."""

import pytest
import torch
import toy
import toy_simple
import transducer_cases as cases
from dispatch import LargestTensor
from half_gemms import emulate
from transducer_cases import KINDS, batch

import panda_icefall
from panda_icefall import transducer_loss
from panda_icefall.losses.lattices import full
from panda_icefall.losses.simple_tiled import loss as simple_loss
from panda_icefall.losses.smoothed import smoothed_arcs
from panda_icefall.normalizer import tile_loop
from panda_icefall.routing import (
    ComputedSimpleLoss,
    deviations_of,
    deviations_of_simple,
    followed_losses,
    simple_verification,
)
from panda_icefall.runs.hooks.guard import bounds_on

SCRATCH = 2**14  # many tiles of dense logits
BOUNDS = bounds_on(torch.device("cpu"), torch.float32)


def told(compute, model=None):
    """The losses that a function computes where PANDA is applied, with their log-probs."""
    losses = []
    with (
        panda_icefall.patched(model, workspace_mib=0.01),
        followed_losses(losses.append, log_probs=True),
    ):
        before = panda_icefall.status()
        compute()
        assert (panda_icefall.status() - before).materialised == {}
    return losses


def distances(found, utterances=(0, 2)):
    compare = deviations_of_simple if isinstance(found, ComputedSimpleLoss) else deviations_of
    return {d.quantity: d.distance for d in compare(found, utterances, SCRATCH)}


@pytest.mark.parametrize("name", KINDS)
def test_every_full_lattice_is_close_to_its_dense_expression(name):
    options, kind = KINDS[name]
    torch.manual_seed(1)
    inputs = batch(kind, dtype=torch.float32)
    joiner = cases.PlacingJoiner()
    (found,) = told(
        lambda: transducer_loss(
            joiner, inputs["am"], inputs["lm"], inputs["targets"], inputs["logit_lengths"],
            inputs["target_lengths"], **options,
        )
    )  # fmt: skip
    seen = distances(found, (0, 1, 3))
    expected = {"log-probs", "log_z", "loss", "adjoints"}
    has_clamp, has_durations = "clamp" in options, any("durations" in key for key in options)
    expected |= set() if has_clamp else {"gradient"}
    expected |= set() if has_clamp or has_durations else {"batch loss"}
    assert set(seen) == expected
    assert max(seen.values()) < 1e-6, seen


@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("options", [{}, {"delay_penalty": 0.2}, {"use_hat_loss": True}])
@pytest.mark.parametrize("kind", [toy.TanhJoiner, toy.TwoLinearJoiner, toy.ContextJoiner])
def test_every_pruned_lattice_is_close_to_its_dense_expression(k2, kind, options, rnnt_type):
    torch.manual_seed(1)
    joiner, data = kind(), toy.batch(k2)
    (found,) = told(lambda: toy.pruned_loss(k2, joiner, data, rnnt_type=rnnt_type, **options))
    seen = distances(found)
    assert set(seen) == {"log-probs", "log_z", "loss", "adjoints", "gradient", "batch loss"}
    assert max(seen.values()) < 1e-5, seen


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_half_autocast_is_no_deviation(k2, reduction):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)

    def compute():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
            logits = joiner(am, lm).float()
        k2.rnnt_loss_pruned(
            logits, data.symbols, data.ranges, 0, data.boundary, reduction=reduction
        )

    (found,) = told(compute)
    assert found.logits.head_dtype == torch.bfloat16
    assert max(distances(found).values()) < 1e-5


@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("scales", [{}, {"am_only_scale": 0.2}])
def test_a_simple_loss_is_close_to_its_dense_expression(k2, is_recorded, scales):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    (found,) = told(lambda: model(k2, data, **scales), model if is_recorded else None)
    seen = {d.quantity: d.distance for d in deviations_of_simple(found, (0, 2), 2**20)}
    assert set(seen) == {"loss", "occupations"}
    assert max(seen.values()) < 1e-5


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(
            torch.float16,
            marks=pytest.mark.skipif(
                torch.__version__ < "2.2",
                reason="a CPU's autocast had bfloat16 alone: runs in the modern lane",
            ),
        ),
    ],
)
def test_the_dense_simple_loss_of_half_projections_is_not_rounded(k2, monkeypatch, dtype):
    """Where products of half values are added up in float32, dense logits are in float32 too."""
    emulate(monkeypatch)
    model, data = toy_simple.Transducer(), toy.batch(k2)

    def compute():
        with torch.autocast("cpu", dtype=dtype):
            model(k2, data)

    (found,) = told(compute, model)
    assert found.am.gemms.operands == dtype
    assert max(d.distance for d in deviations_of_simple(found, (0, 2), 2**20)) < 1e-5


@pytest.mark.parametrize("scales", [{}, {"am_only_scale": 0.2, "lm_only_scale": 0.1}])
def test_a_simple_loss_is_compared_a_few_rows_at_a_time(k2, scales):
    """As at T=150 and C=4336, of which not even one utterance fits a tile on a CPU."""
    model, data = toy_simple.Transducer(), toy.batch(k2)
    (found,) = told(lambda: model(k2, data, **scales), model)
    fewest = toy.S + 2 if scales else 3
    with pytest.MonkeyPatch.context() as patch:
        seen = []

        def arcs(lm, am, *others):
            seen.append((lm, am))
            return smoothed_arcs(lm, am, *others)

        patch.setattr(simple_verification, "smoothed_arcs", arcs)
        for rows in (fewest, fewest + 2, 1000):
            scratch = 32 * toy.C * 2 * rows
            seen.clear()
            found_at = deviations_of_simple(found, (0, 2), scratch)
            assert {d.quantity for d in found_at} == {"loss", "occupations"}
            assert {d.utterances for d in found_at} == {(0, 2)}
            assert max(d.distance for d in found_at) < 1e-5, found_at
            assert max(lm.shape[1] + am.shape[1] for lm, am in seen) <= rows
            assert (len(seen) == 1) == (rows == 1000)
        fits = [
            {d.utterances for d in deviations_of_simple(found, (0, 1, 2), 32 * toy.C * rows)}
            for rows in (fewest - 1, fewest, 3 * fewest)
        ]
    assert fits == [set(), {(0,)}, {(0, 1, 2)}]


def test_what_is_not_finite_in_dense_either_is_no_deviation(k2):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    with torch.no_grad():
        data.am[0, 1] = float("nan")
    (found,) = told(lambda: toy.pruned_loss(k2, toy.TanhJoiner(), data))
    assert distances(found, (0, 1)) == {}
    assert set(distances(found, (1, 2))) >= {"log-probs", "gradient"}
    (found,) = told(lambda: model(k2, data), model)
    assert deviations_of_simple(found, (0, 1), 2**20) == []


def test_nothing_is_left_behind(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    (found,) = told(lambda: toy.pruned_loss(k2, joiner, data))
    state = torch.get_rng_state()
    distances(found)
    assert torch.equal(torch.get_rng_state(), state)
    assert data.am.grad is None
    assert all(p.grad is None for p in joiner.parameters())
    assert torch.is_grad_enabled()


def test_no_tensor_is_larger_than_the_scratch_or_the_workspace(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    (found,) = told(lambda: toy.pruned_loss(k2, joiner, data))
    workspace, scratch = found.options.workspace_bytes, 2**12
    with LargestTensor() as meter:
        assert deviations_of(found, (0, 1, 2), scratch)
    dense_logits = int(found.log_probs.live.sum()) * toy.C * 8
    assert meter.bytes <= max(workspace, scratch) < dense_logits


def gradient_scaled(patch):
    backward = tile_loop.backward

    def planted(*args, **kwargs):
        backward(*args, **kwargs)
        (wanted,) = (a for a in args if isinstance(a, tile_loop.Gradients))
        for table in wanted.tables:
            table.mul_(1.01)

    patch.setattr(tile_loop, "backward", planted)


def forward_shifted(patch, *shifts):
    """Log-probs and normaliser of the tiles."""
    forward = tile_loop.forward

    def planted(*args, **kwargs):
        return tuple(x + shift for x, shift in zip(forward(*args, **kwargs), shifts))

    patch.setattr(tile_loop, "forward", planted)


def an_utterance_left_out(patch):
    from panda_icefall.losses.spec import LatticeOptions

    reduced = LatticeOptions.reduced

    def planted(self, costs):
        return reduced(self, costs[:-1] if self.reduction == "sum" else costs)

    patch.setattr(LatticeOptions, "reduced", planted)


BUGS = {
    "log-probs": lambda patch: forward_shifted(patch, 0.01, 0),
    "log_z": lambda patch: forward_shifted(patch, 0, 0.01),
    "gradient": gradient_scaled,
}


@pytest.mark.parametrize("quantity", BUGS)
def test_a_planted_bug_is_beyond_the_bounds(k2, monkeypatch, quantity):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    with monkeypatch.context() as patch:
        BUGS[quantity](patch)
        (found,) = told(lambda: toy.pruned_loss(k2, joiner, data))
        seen = distances(found)
    assert seen[quantity] > BOUNDS[quantity]


def test_a_wrong_sum_over_the_batch_is_beyond_the_bounds(k2, monkeypatch):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    with monkeypatch.context() as patch:
        an_utterance_left_out(patch)
        (found,) = told(lambda: toy.pruned_loss(k2, joiner, data))
    assert distances(found)["batch loss"] > BOUNDS["batch loss"]


def test_a_wrong_recursion_is_beyond_the_bounds(k2, monkeypatch):
    from panda_icefall.losses.lattices import pruned

    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    name = "banded_recursion"
    original = getattr(pruned, name)
    with monkeypatch.context() as patch:
        patch.setattr(pruned, name, lambda *a, **k: original(*a, **k) * 1.001)
        (found,) = told(lambda: toy.pruned_loss(k2, joiner, data))
        seen = distances(found)
    assert seen["loss"] > BOUNDS["loss"]
    assert seen["adjoints"] > BOUNDS["adjoints"] / 2


def test_a_wrong_simple_loss_is_beyond_the_bounds(k2, monkeypatch):
    model, data = toy_simple.Transducer(), toy.batch(k2)
    arcs = simple_loss.tiled_arcs

    def planted(*args, **kwargs):
        px, py = arcs(*args, **kwargs)
        return px + 0.001, py

    with monkeypatch.context() as patch:
        patch.setattr(simple_loss, "tiled_arcs", planted)
        (found,) = told(lambda: model(k2, data), model)
        seen = {d.quantity: d.distance for d in deviations_of_simple(found, (0, 2), 2**20)}
    assert seen["loss"] > BOUNDS["loss"]


@pytest.mark.parametrize("kind", ["pruned", "simple"])
def test_the_dense_loss_runs_the_exact_recursion_in_torch_whatever_the_routed_one_runs(
    k2, monkeypatch, kind
):
    model, data, seen = toy_simple.Transducer(), toy.batch(k2), []
    recursion = full.unchecked_recursion

    def spied(px, *others):
        seen.append((px.dtype, *others[-2:]))
        return recursion(px, *others)

    if kind == "simple":
        (found,) = told(lambda: model(k2, data), model)
    else:
        (found,) = told(lambda: toy.pruned_loss(k2, toy.TanhJoiner(), data))
    monkeypatch.setattr(full, "unchecked_recursion", spied)
    if kind == "simple":
        deviations_of_simple(found, (0, 2), 2**20)
    else:
        distances(found)
    assert seen[0] == (torch.float64, "torch", "exact")
    assert [dtype for dtype, *_ in seen[1:]] == [torch.float32] * (kind == "simple")
