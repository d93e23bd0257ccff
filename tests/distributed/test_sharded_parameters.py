"""FSDP2 (``fully_shard``) on two ranks: recorded joiners and projections stay routed."""

import contextlib
import functools

import ctc_batch
import pytest
import torch
import torch.nn.functional as F
import toy
import toy_simple
import transducer_cases as cases
from rank_checks import checks_of, ranks_fixture
from torch import nn

import panda_icefall
from panda_icefall import rnnt, routing
from panda_icefall.runs.hooks import guard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.__version__ < "2.13", reason="FSDP2 on the CPU: with the modern lane's torch"
    ),
]
found = ranks_fixture(__file__, world_size=2)


@pytest.mark.parametrize("check", checks_of(__file__))
def test_on_two_ranks(found, check):
    assert found[check] == []


def fully_shard(module, **options):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, **options)


def averaged(loss_of, model):
    """Gradients of the mean over both ranks' losses, on one process and dense."""
    total = sum(loss_of(model, rank) for rank in (0, 1)) / 2
    total.backward()
    return [p.grad for p in model.parameters()]


def assert_same_gradients(model, expected):
    found = [p.grad.full_tensor() for p in model.parameters()]
    cases.assert_close(found, expected, 1e-11)


def compare(make, loss_of, shard, rank, *, steps=2, materialised=None, **counted):
    """Two steps of a sharded model, routed, give the gradients of a whole one, dense.

    Args:
      make: the model, the same at every call.
      loss_of: ``(model, rank)``, of the rank's own batch.
      shard: what to shard of the model, in place.
      counted: what ``status()`` is to say.
    """
    expected = averaged(loss_of, make())
    model = make()
    shard(model)
    with panda_icefall.patched(model, adjoint_tolerance=0, ctc=hasattr(model, "ctc_output")):
        for _ in range(steps):
            model.zero_grad()
            loss_of(model, rank).backward()
            assert_same_gradients(model, expected)
        status = panda_icefall.status()
    assert status.materialised == (materialised or {}), status.materialised
    for name, count in counted.items():
        assert getattr(status, name) == count, name


class Recipe(nn.Module):
    """A model that computes its pruned loss, or gives its logits out."""

    def __init__(self, has_loss):
        super().__init__()
        torch.manual_seed(1)
        self.has_loss = has_loss
        self.encoder = nn.Sequential(nn.Linear(toy.X, 5), nn.Linear(5, toy.X))
        self.joiner = toy.TwoLinearJoiner()
        self.double()

    def forward(self, data):
        am, lm = rnnt.do_rnnt_pruning(self.encoder(data.am), data.lm, data.ranges)
        logits = self.joiner(am, lm)
        return pruned_loss(logits, data) if self.has_loss else {"logits": [logits]}


def pruned_loss(logits, data):
    return rnnt.rnnt_loss_pruned(
        logits, data.symbols, data.ranges, 0, data.boundary, reduction="sum"
    )


@functools.cache
def data_of(rank):
    """Each rank's own batch; made once, for its prune ranges are made of a simple loss."""
    return toy.batch(rnnt, torch.float64, seed=rank)


def recipe_loss(model, rank):
    data = data_of(rank)
    output = model(data)
    return output if model.has_loss else pruned_loss(output["logits"][0], data)


def in_parts(again):
    """Joiner, its last layer and the rest as three groups."""

    def shard(model):
        options = {"reshard_after_forward": again}
        fully_shard(model.joiner.output_linear, **options)
        fully_shard(model.joiner, **options)
        fully_shard(model, **options)

    return shard


def check_pruned_losses_in_and_outside_of_the_model(rank):
    for has_loss in (True, False):
        for shard in (in_parts(True), in_parts(False), fully_shard):
            make = lambda: Recipe(has_loss)  # noqa: E731, B023
            compare(make, recipe_loss, shard, rank, losses_routed=2, losses_dense=0)


def check_memory_is_freed_between_the_passes(rank):
    model = Recipe(has_loss=True)
    in_parts(True)(model)
    gathered = []
    model.joiner.output_linear.register_forward_pre_hook(
        lambda module, args: gathered.append(module.weight)
    )
    with panda_icefall.patched(adjoint_tolerance=0):
        loss = recipe_loss(model, rank)
        (weight,) = gathered
        assert weight.untyped_storage().nbytes() == 0
        loss.backward()
        assert weight.untyped_storage().nbytes() == 0
    # Nothing is left on the module.
    assert not any("panda" in name for name in vars(model.joiner.output_linear))


def check_a_guard_leaves_freed_weights_alone(rank):
    for shard, is_whole in ((in_parts(True), False), (lambda model: None, True)):
        model, told = Recipe(has_loss=True), []
        shard(model)
        with panda_icefall.patched(), routing.followed_losses(told.append, log_probs=True):
            recipe_loss(model, rank)
        (found,) = told
        assert found.is_whole is is_whole
        assert bool(guard.compared(found, [0, 1])) is is_whole


def check_gradients_accumulate_without_communication(rank):
    expected = averaged(recipe_loss, Recipe(True))
    model = Recipe(True)
    in_parts(True)(model)
    with panda_icefall.patched(adjoint_tolerance=0):
        model.set_requires_gradient_sync(False)
        recipe_loss(model, rank).backward()
        model.set_requires_gradient_sync(True)
        recipe_loss(model, rank).backward()
        assert panda_icefall.status().losses_routed == 2
    assert_same_gradients(model, [2 * g for g in expected])


class TiedRecipe(Recipe):
    """Its logits are read a second time, by an operation that needs the tensor."""

    def forward(self, data):
        am, lm = rnnt.do_rnnt_pruning(self.encoder(data.am), data.lm, data.ranges)
        logits = self.joiner(am, lm)
        return pruned_loss(logits, data) + logits.roll(1, dims=-1).square().sum()


def check_logits_that_become_a_tensor_after_the_joiner_is_freed(rank):
    make = lambda: TiedRecipe(True)  # noqa: E731
    compare(
        make, recipe_loss, in_parts(True), rank,
        materialised={"roll": 2, "sum": 2}, losses_routed=2, losses_dense=0,
    )  # fmt: skip


def own_loss(joiner, rank):
    _, kind = cases.KINDS["regular"]
    inputs = cases.batch(kind, seed=rank)
    return panda_icefall.transducer_loss(
        joiner, inputs["am"], inputs["lm"], inputs["targets"], inputs["logit_lengths"],
        inputs["target_lengths"], adjoint_tolerance=0.0,
    )  # fmt: skip


def check_a_joiner_in_a_loop_of_ones_own(rank):
    torch.manual_seed(1)
    plain = cases.PlacingJoiner(scale=2.0).double()
    expected = averaged(own_loss, plain)
    for shards in (("",), ("output", ""), ("output",)):
        for again in (True, False):
            joiner = cases.PlacingJoiner(scale=2.0).double()
            joiner.load_state_dict(plain.state_dict())
            for name in shards:
                fully_shard(joiner.get_submodule(name), reshard_after_forward=again)
            for _ in range(2):
                joiner.zero_grad()
                before = panda_icefall.status()
                own_loss(joiner, rank).backward()
                assert (panda_icefall.status() - before).losses_routed == 1
                assert_same_gradients(joiner, expected)


def check_a_joiner_that_is_called_for_some_sites_at_a_time(rank):
    def loss(joiner, rank):
        return own_loss(lambda am, lm: joiner(am, lm).roll(1, -1).roll(-1, -1), rank)

    torch.manual_seed(1)
    plain = cases.PlacingJoiner().double()
    expected = averaged(own_loss, plain)
    joiner = cases.PlacingJoiner().double()
    joiner.load_state_dict(plain.state_dict())
    fully_shard(joiner, reshard_after_forward=True)
    before = panda_icefall.status()
    loss(joiner, rank).backward()
    assert (panda_icefall.status() - before).losses_by_calls == 1
    assert_same_gradients(joiner, expected)


def simple_loss(model, rank):
    return model(rnnt, data_of(rank))


def check_recorded_projections(rank):
    def make():
        return toy_simple.Transducer(toy_simple.LoRALinear).double()

    def each(model):
        for name in ("simple_am_proj", "simple_lm_proj"):
            fully_shard(getattr(model, name), reshard_after_forward=True)
        fully_shard(model)

    for shard in (each, fully_shard):
        compare(
            make, simple_loss, shard, rank, simple_losses_deferred=2, simple_losses_of_tensors=0
        )


def check_projections_that_are_scaled_after_they_are_freed(rank):
    def make():
        return toy_simple.Transducer().double()

    def loss(model, rank):
        return model(rnnt, data_of(rank), between=lambda am, lm: (am * 0.5, lm + 1.0))

    def shard(model):
        for name in ("simple_am_proj", "simple_lm_proj"):
            fully_shard(getattr(model, name), reshard_after_forward=True)
        fully_shard(model)

    counted = {"simple_losses_of_tensors": 2, "simple_losses_dense": 0}
    said = {"simple_am_proj: __mul__": 2, "simple_lm_proj: __add__": 2}
    compare(make, loss, shard, rank, materialised=said, **counted)


class Ctc(nn.Module):
    """An encoder, a CTC head, its loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(4, ctc_batch.D)
        self.ctc_output = nn.Sequential(nn.Linear(ctc_batch.D, ctc_batch.C), nn.LogSoftmax(-1))
        self.double()

    def forward(self, x):
        log_probs = self.ctc_output(self.encoder(x)).permute(1, 0, 2)
        targets = torch.arange(1, 7).view(2, 3)
        return F.ctc_loss(log_probs, targets, torch.tensor([9, 7]), torch.tensor([3, 2]))


def check_a_ctc_head(rank):
    def loss(model, rank):
        x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(rank))
        return model(x.double())

    def shard(model):
        fully_shard(model.ctc_output, reshard_after_forward=True)
        fully_shard(model)

    compare(Ctc, loss, shard, rank, ctc_losses_routed=2, ctc_losses_dense=0)


def check_parameters_in_another_dtype_for_compute(rank):
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    grads = []
    for applied in (contextlib.nullcontext(), panda_icefall.patched(adjoint_tolerance=0)):
        model = Recipe(has_loss=True).float()
        fully_shard(model.joiner, mp_policy=policy)
        fully_shard(model)
        data = toy.batch(rnnt, seed=rank)
        with applied as _:
            model(data).backward()
            is_routed = panda_icefall.routing.patch.is_applied()
            assert not is_routed or panda_icefall.status().materialised == {}
        grads.append([p.grad.full_tensor() for p in model.parameters()])
    for dense, ours in zip(*grads):
        assert (dense - ours).norm() <= 2e-2 * dense.norm()
