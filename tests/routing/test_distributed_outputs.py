"""DDP and FSDP look for the tensors of a model's output: a recorded one is none, yet both work."""

import contextlib

import counted
import pytest
import torch
import torch.distributed as dist
import toy
import toy_simple
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import panda_icefall
from panda_icefall.routing import PandaError, sharded_modules


@pytest.fixture(autouse=True)
def one_rank(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Pruned(nn.Module):
    """Gives out the logits, in a container, and something else; has a layer nobody uses."""

    def __init__(self, k2, packed, hidden=torch.tanh):
        super().__init__()
        torch.manual_seed(1)
        self.k2, self.packed, self.hidden = k2, packed, hidden
        self.encoder = nn.Linear(toy.X, toy.X)
        self.output_linear = nn.Linear(toy.X, toy.C)
        self.unused = nn.Linear(3, 3)

    def forward(self, data):
        encoder_out = self.encoder(data.am)
        am, lm = self.k2.do_rnnt_pruning(encoder_out, data.lm, data.ranges)
        return self.packed(self.output_linear(self.hidden(am + lm))), encoder_out


PACKED = {
    "alone": (lambda logits: logits, lambda output: output),
    "tuple": (lambda logits: (1, logits), lambda output: output[1]),
    "dict": (lambda logits: {"logits": [logits]}, lambda output: output["logits"][0]),
    "twice": (lambda logits: (logits, logits), lambda output: output[1]),
}


def loss_of(k2, logits, data):
    return k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary, reduction="sum")


def gradients(model, step, **options):
    """Those of two steps, dense where not applied: DDP sees in the second what the first left."""
    wrapped = DistributedDataParallel(model, **options)
    found = []
    for _ in range(2):
        step(wrapped).backward()
        found += [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return found


OPTIONS = [{"find_unused_parameters": True}, {"static_graph": True}, {}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "".join(options) or "plain")
@pytest.mark.parametrize("packing", PACKED)
def test_the_loss_may_be_outside_of_a_ddp_model(k2, packing, options):
    pack, unpack = PACKED[packing]
    data = toy.batch(k2, torch.float64)

    def run():
        model = Pruned(k2, pack).double()
        if "find_unused_parameters" not in options:
            del model.unused
        return gradients(model, lambda m: loss_of(k2, unpack(m(data)[0]), data), **options)

    dense = run()
    with counted.routed(2, adjoint_tolerance=0):
        routed = run()
    torch.testing.assert_close(routed, dense, rtol=1e-10, atol=1e-12)
    if "find_unused_parameters" in options:
        assert dense[-1] is None


def test_logits_that_no_loss_reads_leave_ddp_ready_for_the_next_step(k2):
    data = toy.batch(k2, torch.float64)

    def run():
        model = Pruned(k2, lambda logits: logits).double()
        step = lambda m: m(data)[1].square().sum()  # noqa: E731
        return gradients(model, step, find_unused_parameters=True)

    dense = run()
    with counted.routed(0):
        routed = run()
    torch.testing.assert_close(routed, dense, rtol=1e-10, atol=1e-12)


def test_logits_that_were_materialised_are_found_too(k2):
    data = toy.batch(k2, torch.float64)

    def used(x):
        return x + 0 * x.softmax(-1)

    def run():
        model = Pruned(k2, lambda logits: logits * (logits.amax() > -1e9), used).double()
        step = lambda m: loss_of(k2, m(data)[0], data)  # noqa: E731
        return gradients(model, step, find_unused_parameters=True)

    dense = run()
    materialised = {"amax": 2, "C classes at every site": 2}
    with counted.routed(0, dense=2, materialised=materialised):
        routed = run()
    torch.testing.assert_close(routed, dense, rtol=1e-10, atol=1e-12)


class Projections(toy_simple.Transducer):
    def forward(self, data):
        return self.projections(data)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_split", [False, True])
def test_projections_may_be_given_out_of_a_ddp_model(k2, bias, is_split):
    data = toy.batch(k2, torch.float64)

    def step(model):
        am, lm = model(data)
        if is_split:
            am = am + 0 * am.softmax(-1)
        return toy_simple.smoothed_loss(k2, am, lm, data)

    def run(is_deferred):
        model = Projections(bias=bias).double()
        applied = counted.deferred(model, 2, materialised=None)
        with applied if is_deferred else contextlib.nullcontext():
            return gradients(model, step, find_unused_parameters=True)

    dense, routed = run(False), run(True)
    torch.testing.assert_close(routed, dense, rtol=1e-10, atol=1e-12)
    assert bool(panda_icefall.status().materialised) is is_split


def test_the_search_is_put_back(k2):
    from torch.nn.parallel import distributed

    before = distributed._find_tensors
    with panda_icefall.patched():
        assert distributed._find_tensors is not before
    assert distributed._find_tensors is before


class Recipe(nn.Module):
    """A model that computes its loss, or leaves that to its caller."""

    def __init__(self, k2, has_loss):
        super().__init__()
        torch.manual_seed(1)
        self.k2, self.has_loss = k2, has_loss
        self.encoder = nn.Linear(toy.X, toy.X)
        self.joiner = toy.TwoLinearJoiner()

    def forward(self, data):
        am, lm = self.k2.do_rnnt_pruning(self.encoder(data.am), data.lm, data.ranges)
        logits = self.joiner(am, lm)
        return loss_of(self.k2, logits, data) if self.has_loss else {"logits": (logits,)}


def fsdp(module):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


def fully_shard(module):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=init_device_mesh("cpu", (1,)))


needs_fsdp = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="FSDP2 on the CPU: with the modern lane's torch"
)


@needs_fsdp
@pytest.mark.parametrize("shard", [fsdp, fully_shard])
@pytest.mark.parametrize("has_loss", [True, False])
@pytest.mark.parametrize("is_joiner_sharded", [True, False])
def test_sharded_models_compute_as_without(k2, shard, has_loss, is_joiner_sharded):
    data = toy.batch(k2, torch.float64)

    def run():
        model = Recipe(k2, has_loss).double()
        if is_joiner_sharded:
            model.joiner = shard(model.joiner)
        model, found = shard(model), []
        for _ in range(2):
            output = model(data)
            loss = output if has_loss else loss_of(k2, output["logits"][0], data)
            loss.backward()
            grads = [p.grad for p in model.parameters()]
            found += [loss.detach(), *(getattr(g, "_local_tensor", g).clone() for g in grads)]
        return found

    dense = run()
    with panda_icefall.patched(adjoint_tolerance=0):
        routed = run()
    torch.testing.assert_close(routed, dense, rtol=1e-10, atol=1e-12)
    status = panda_icefall.status()
    assert status.losses_routed + status.losses_dense == 2
    if is_joiner_sharded and shard is fsdp:
        assert status.materialised == {"FSDP": 4}
    elif shard is fsdp and not has_loss:
        assert status.materialised == {"FullyShardedDataParallel": 2}
    else:
        assert (status.losses_routed, status.materialised) == (2, {})


@needs_fsdp
def test_fully_shard_of_older_torch_computes_a_joiner_as_without(k2, monkeypatch):
    data = toy.batch(k2, torch.float64)

    def run():
        model = Recipe(k2, has_loss=True).double()
        model.joiner = fully_shard(model.joiner)
        return model(data).detach()

    dense = run()
    monkeypatch.setattr(sharded_modules, "_runs_losses", lambda: False)
    with panda_icefall.patched():
        routed = run()
    torch.testing.assert_close(routed, dense, rtol=1e-10, atol=1e-12)
    status = panda_icefall.status()
    assert (status.losses_routed, status.losses_dense) == (0, 1)
    assert status.materialised == {"FSDP": 2}


def by_storage(parameter):
    """As FSDP frees what it has gathered."""
    getattr(parameter, "untyped_storage", parameter.storage)().resize_(0)


def by_data(parameter):
    """As DeepSpeed's ZeRO-3 does."""
    parameter.data = torch.empty(0)


@pytest.mark.parametrize("free", [by_storage, by_data])
def test_a_weight_that_somebody_freed_is_refused_by_name(k2, free):
    data, joiner = toy.batch(k2), toy.TwoLinearJoiner()
    joiner.output_linear.register_forward_hook(lambda module, args, out: free(module.weight))
    refused = pytest.raises(
        PandaError,
        match=r"shape \(31, 10\) .* was freed before the loss: .* compute the loss inside",
    )
    with panda_icefall.patched(), refused:
        toy.pruned_loss(k2, joiner, data)
    assert panda_icefall.status().materialised == {}


@pytest.mark.parametrize("free", [by_storage, by_data])
@pytest.mark.parametrize("is_simple", [False, True])
def test_a_weight_that_is_freed_before_backward_is_refused_by_name(k2, free, is_simple):
    data = toy.batch(k2)
    model = toy_simple.Transducer() if is_simple else toy.TwoLinearJoiner()
    with panda_icefall.patched(model):
        loss = model(k2, data) if is_simple else toy.pruned_loss(k2, model, data)
        free((model.simple_lm_proj if is_simple else model.inner_linear).weight)
        refused = pytest.raises(RuntimeError, match=r"backward: a tensor of shape .* freed since")
        with refused:
            loss.backward()


@pytest.mark.parametrize("free", [by_storage, by_data])
def test_a_projection_that_somebody_freed_is_refused_by_name(k2, free):
    data, model = toy.batch(k2), toy_simple.Transducer()
    model.simple_lm_proj.register_forward_hook(lambda module, args, out: free(module.weight))
    refused = pytest.raises(PandaError, match="that a projection to classes read was freed before")
    with panda_icefall.patched(model), refused:
        model(k2, data)
    status = panda_icefall.status()
    assert (status.simple_losses_dense, status.materialised) == (0, {})
