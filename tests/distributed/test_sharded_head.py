"""A head whose classes are sharded over two or three ranks gives the numbers of a whole one."""

import copy
import importlib.util
import os
import shutil
import tempfile

import ctc_batch
import gates
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import toy
import toy_simple
import transducer_cases as cases
from oracle import dense_selected_log_probs
from rank_checks import checks_of, ranks_fixture
from torch import nn

import panda_icefall
from panda_icefall import rnnt, selected_log_probs
from panda_icefall.routing import PandaError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.__version__ < "2.6", reason="DTensor is newer: runs in the modern lane"
    ),
]
found = ranks_fixture(__file__, world_size=3)


@pytest.mark.parametrize("check", checks_of(__file__))
def test_on_two_and_three_ranks(found, check):
    assert found[check] == []


def meshes():
    """Of all three ranks, and of the first two."""
    from torch.distributed.device_mesh import DeviceMesh

    return [DeviceMesh("cpu", [0, 1, 2]), DeviceMesh("cpu", [0, 1])]


def shard(tensor, mesh, placement=None):
    """A leaf: this rank's classes of a tensor that all ranks have."""
    from torch.distributed.tensor import Shard, distribute_tensor

    sharded = distribute_tensor(
        tensor.detach(), mesh, [Shard(0) if placement is None else placement]
    )
    return nn.Parameter(sharded)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_op(mesh, rows, weight, bias, ids, log_adjoints, log_z_adjoints, **options):
    """As ``gates.run``, of a sharded head."""
    leaves = [rows.clone().requires_grad_(), shard(weight, mesh), shard(bias, mesh)]
    selected_logp, log_z = selected_log_probs(*leaves, ids, **options)
    dtype = selected_logp.dtype
    total = (selected_logp * log_adjoints.to(dtype)).sum()
    total = total + (log_z * log_z_adjoints.to(dtype)).sum()
    total.backward()
    grads = [whole(leaf.grad) for leaf in leaves]
    return [selected_logp.detach(), log_z.detach(), *grads]


# Uneven, with an empty last shard, fewer classes than ranks, one class, even.
CLASSES = [211, 4, 2, 1, 12]


def check_the_op_in_float64(rank):
    for mesh in meshes():
        if mesh.get_coordinate() is None:
            continue
        for classes in CLASSES:
            for kind in ("flat", "peaked", "negative"):
                data = gates.values(kind, classes)
                truth = gates.run(dense_selected_log_probs, *data)
                # Several tiles of rows and of classes, the last ones narrower.
                ours = sharded_op(mesh, *data, adjoint_tolerance=0, workspace_bytes=8000)
                for name, x, ref in zip(gates.NAMES, ours, truth):
                    bound = 1e-12 * max(gates.rms(ref), 1.0 if classes == 1 else 0.0)
                    assert gates.rms(x - ref) <= bound, (mesh, classes, kind, name)


def check_rounding_in_float32(rank):
    """At most twice the dense error: a rank's adjoint of its normaliser is rounded once more."""
    (mesh, _) = meshes()
    for kind in ("flat", "peaked", "shifted", "negative"):
        data = gates.in_dtype(gates.values(kind, sites=640), torch.float32)
        ours = sharded_op(mesh, *data)
        plain = gates.run(gates.dense, *data)
        truth = gates.run(dense_selected_log_probs, *gates.in_dtype(data, torch.float64))
        for name, x, y, ref in zip(gates.NAMES, ours, plain, truth):
            bound = max(2 * gates.rms(y - ref), 4 * 2**-23 * gates.rms(ref))
            assert gates.rms(x - ref) <= bound, (kind, name, gates.rms(x - ref) / bound)


def check_masked_ids_dead_sites_and_classes_of_probability_0(rank):
    for mesh in meshes():
        if mesh.get_coordinate() is None:
            continue
        rows, weight, bias, ids, adjoints, log_z_adjoints = gates.values(classes=12)
        bias = bias.clone()
        bias[:4] = -torch.inf  # on three ranks all classes of the first
        ids = ids.clamp(min=4)
        live = torch.arange(gates.N) % 3 != 1
        mask = torch.arange(ids.numel()).view_as(ids) % 4 != 2
        ids_with_junk = torch.where(mask & live[:, None], ids, torch.full_like(ids, 99))
        leaves = [rows.clone().requires_grad_(), shard(weight, mesh), shard(bias, mesh)]
        counters = panda_icefall.normalizer.TileCounters()
        logp, log_z = selected_log_probs(
            *leaves, ids_with_junk, selected_mask=mask, live=live, counters=counters,
            adjoint_tolerance=0,
        )  # fmt: skip
        ((logp * adjoints).sum() + (log_z * log_z_adjoints).sum()).backward()
        twins = [t.detach().clone().requires_grad_() for t in (rows, weight, bias)]
        expected_logp, expected_log_z = dense_selected_log_probs(*twins, ids)
        expected_logp = expected_logp * (mask & live[:, None])
        expected_log_z = expected_log_z * live
        ((expected_logp * adjoints).sum() + (expected_log_z * log_z_adjoints).sum()).backward()
        cases.assert_close([logp, log_z], [expected_logp, expected_log_z], 1e-12)
        cases.assert_close(
            [whole(leaf.grad) for leaf in leaves], [twin.grad for twin in twins], 1e-12
        )
        assert counters.totals.sites == gates.N
        assert counters.totals.sites_evaluated == int(live.sum())


def check_half_weights_under_a_head_dtype(rank):
    (mesh, _) = meshes()
    rows, weight, bias, ids, *adjoints = gates.in_dtype(gates.values(), torch.float32)
    options = {"head_dtype": torch.bfloat16, "adjoint_tolerance": 0}
    ours = sharded_op(mesh, rows, weight, bias, ids, *adjoints, **options)
    one = gates.run(
        lambda *a: selected_log_probs(*a, **options), rows, weight, bias, ids, *adjoints
    )
    cases.assert_close(ours, one, 4 * 2**-23)


def check_an_id_of_another_rank_never_meets_a_padded_column(rank):
    """Triton pads the last tile; here it runs in its interpreter."""
    if importlib.util.find_spec("triton") is None or "TRITON_INTERPRET" not in os.environ:
        return
    (mesh, _) = meshes()
    data = gates.in_dtype(gates.values(classes=37, sites=9), torch.float32)
    ours = sharded_op(mesh, *data, engine="triton", adjoint_tolerance=0)
    truth = gates.run(dense_selected_log_probs, *gates.in_dtype(data, torch.float64))
    cases.assert_close([x.double() for x in ours], truth, 1e-5)


def sharded_twin(joiner, mesh):
    """A joiner with the same numbers and a sharded output layer."""
    twin = type(joiner)(joiner.output.out_features, joiner.scale).double()
    twin.load_state_dict(joiner.state_dict())
    twin.output.weight = shard(joiner.output.weight, mesh)
    twin.output.bias = shard(joiner.output.bias, mesh)
    return twin


def check_transducer_losses_of_every_kind(rank):
    for mesh in meshes():
        if mesh.get_coordinate() is None:
            continue
        for name, (options, kind) in cases.KINDS.items():
            torch.manual_seed(1)
            joiner, inputs = cases.PlacingJoiner(scale=2.0).double(), cases.batch(kind)
            expected, expected_grads = cases.oracle(joiner, inputs, kind)
            twin = sharded_twin(joiner, mesh)
            before = panda_icefall.status()
            costs = panda_icefall.transducer_loss(
                twin, inputs["am"], inputs["lm"], inputs["targets"], inputs["logit_lengths"],
                inputs["target_lengths"], adjoint_tolerance=0.0, reduction="none", **options,
            )  # fmt: skip
            assert (panda_icefall.status() - before).losses_routed == 1, name
            assert costs.isfinite().all(), (name, costs, expected)
            cases.assert_close([costs], [expected], 1e-12)
            grads = [whole(g) for g in cases.gradients(costs, inputs, twin)]
            cases.assert_close(grads, expected_grads, 1e-11)


class _Additive(nn.Module):
    """Six tokens, and on the last of three ranks three durations."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.output = nn.Linear(4, 9, dtype=torch.float64)

    def forward(self, am, lm):
        return self.output(torch.tanh(am.unsqueeze(2) + lm.unsqueeze(1)))


def check_a_duration_of_probability_0_on_a_rank_without_tokens(rank):
    mesh, joiner = meshes()[0], _Additive()
    with torch.no_grad():
        joiner.output.bias[6] = -torch.inf
    am = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    lm = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    twin, found = copy.deepcopy(joiner), []
    twin.output.weight = shard(joiner.output.weight, mesh)
    twin.output.bias = shard(joiner.output.bias, mesh)
    for model in (joiner, twin):
        loss = panda_icefall.transducer_loss(
            model, am, lm, torch.tensor([[1, 5], [3, 0]]), torch.tensor([5, 4]),
            torch.tensor([2, 1]), durations=[0, 1, 2], reduction="sum", adjoint_tolerance=0.0,
        )  # fmt: skip
        grads = torch.autograd.grad(loss, [am, lm, model.output.weight, model.output.bias])
        found.append([loss, *map(whole, grads)])
    assert all(values.isfinite().all() for values in found[0])
    cases.assert_close(found[1], found[0], 1e-11)


def check_a_loss_that_is_not_finite_is_reported_as_on_one_process(rank):
    (mesh, _) = meshes()
    inputs = cases.batch(cases.KINDS["regular"][1])
    am = inputs["am"].detach().clone()
    am[0, 1, 2] = torch.nan
    torch.manual_seed(1)
    plain = cases.PlacingJoiner().double()
    found = []
    panda_icefall.routing.reset_counters()
    for joiner in (sharded_twin(plain, mesh), plain):  # the first one is looked into
        am.requires_grad_()
        costs = panda_icefall.transducer_loss(
            joiner, am, inputs["lm"], inputs["targets"], inputs["logit_lengths"],
            inputs["target_lengths"], reduction="none",
        )  # fmt: skip
        (grad,) = torch.autograd.grad(costs.sum(), am)
        found.append((costs.detach(), grad))
    (sharded_costs, sharded_grad), (costs, grad) = found
    assert costs.isnan().tolist() == sharded_costs.isnan().tolist() == [True] + 3 * [False]
    cases.assert_close([sharded_costs[1:]], [costs[1:]], 1e-12)
    cases.assert_close([sharded_grad[1:]], [grad[1:]], 1e-11)
    assert sharded_grad[0].isnan().any()

    plain.output.weight.data[7, 3] = torch.nan  # one rank has it
    panda_icefall.routing.reset_counters()
    costs = panda_icefall.transducer_loss(
        sharded_twin(plain, mesh), inputs["am"], inputs["lm"], inputs["targets"],
        inputs["logit_lengths"], inputs["target_lengths"], reduction="none",
    )  # fmt: skip
    assert costs.isnan().all()
    costs.sum().backward()


def check_a_pruned_loss_and_a_routed_recipe(rank):
    (mesh, _) = meshes()
    data = toy.batch(rnnt, torch.float64)
    for use_hat_loss in (False, True):
        torch.manual_seed(1)
        joiner = toy.TwoLinearJoiner().double()
        loss, grads = toy.loss_and_gradients(rnnt, joiner, data, use_hat_loss=use_hat_loss)
        layer = joiner.output_linear
        layer.weight, layer.bias = shard(layer.weight, mesh), shard(layer.bias, mesh)
        leaves = [data.am, data.lm, *joiner.parameters()]
        own = panda_icefall.pruned_transducer_loss(
            joiner, data.am, data.lm, data.symbols, data.ranges, boundary=data.boundary,
            reduction="sum", use_hat_loss=use_hat_loss, adjoint_tolerance=0,
        )  # fmt: skip
        own_grads = torch.autograd.grad(own, leaves)
        with panda_icefall.patched(adjoint_tolerance=0):
            routed = toy.pruned_loss(rnnt, joiner, data, use_hat_loss=use_hat_loss)
            routed_grads = torch.autograd.grad(routed, leaves)
        assert panda_icefall.status().losses_routed == 1
        for found_loss, found_grads in ((own, own_grads), (routed, routed_grads)):
            cases.assert_close([found_loss], [loss], 1e-12)
            cases.assert_close([whole(g) for g in found_grads], grads, 1e-11)


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
        targets = torch.arange(1, 7).view(2, 3) * 3
        return F.ctc_loss(log_probs, targets, torch.tensor([9, 7]), torch.tensor([3, 2]))


def check_a_ctc_head(rank):
    (mesh, _) = meshes()
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1)).double()
    whole_model, model = Ctc(), Ctc()
    expected = whole_model(x)
    layer = model.ctc_output[0]
    layer.weight, layer.bias = shard(layer.weight, mesh), shard(layer.bias, mesh)
    with panda_icefall.patched(model, ctc=True, adjoint_tolerance=0):
        loss = model(x)
        grads = torch.autograd.grad(loss, [*model.parameters()])
    assert panda_icefall.status().ctc_losses_routed == 1
    cases.assert_close([loss], [expected], 1e-12)
    expected_grads = torch.autograd.grad(expected, [*whole_model.parameters()])
    cases.assert_close([whole(g) for g in grads], expected_grads, 1e-11)


def check_a_sharded_projection_of_the_simple_loss_is_refused(rank):
    (mesh, _) = meshes()
    model = toy_simple.Transducer().double()
    model.simple_am_proj.weight = shard(model.simple_am_proj.weight, mesh)
    model.simple_am_proj.bias = shard(model.simple_am_proj.bias, mesh)
    refused = pytest.raises(PandaError, match="simple_am_proj: got a DTensor for its weight")
    data = toy.batch(rnnt, torch.float64)
    with panda_icefall.patched(model), refused:
        model(rnnt, data)


def check_adam_and_a_checkpoint_that_goes_on_as_one_process(rank):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    (mesh, _) = meshes()
    inputs = cases.batch(cases.KINDS["regular"][1])

    def two_steps(joiner, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            panda_icefall.transducer_loss(
                joiner, inputs["am"], inputs["lm"], inputs["targets"], inputs["logit_lengths"],
                inputs["target_lengths"], adjoint_tolerance=0.0,
            ).backward()  # fmt: skip
            optimizer.step()

    def trained(joiner):
        optimizer = torch.optim.Adam(joiner.parameters(), lr=0.1)
        two_steps(joiner, optimizer)
        return optimizer

    torch.manual_seed(1)
    alone = cases.PlacingJoiner().double()
    twin = sharded_twin(alone, mesh)
    of_alone, of_twin = trained(alone), trained(twin)
    weights = [whole(p).detach() for p in twin.parameters()]
    cases.assert_close(weights, [p.detach() for p in alone.parameters()], 1e-9)

    folder = [tempfile.mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(folder)
    model, optimizer = get_state_dict(twin, of_twin)
    moment = optimizer["state"]["output.weight"]["exp_avg"]
    assert moment.placements == twin.output.weight.placements
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder[0])

    # One process reads it as any other checkpoint.
    plain = {"model": cases.PlacingJoiner().double().state_dict()}
    dcp.load(plain, checkpoint_id=folder[0], no_dist=True)
    for (name, tensor), expected in zip(plain["model"].items(), weights):
        assert torch.equal(tensor, expected), name

    resumed = sharded_twin(cases.PlacingJoiner().double(), mesh)
    of_resumed = torch.optim.Adam(resumed.parameters(), lr=0.1)
    model, optimizer = get_state_dict(resumed, of_resumed)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder[0])
    set_state_dict(resumed, of_resumed, model_state_dict=model, optim_state_dict=optimizer)
    two_steps(resumed, of_resumed)
    two_steps(alone, of_alone)
    weights = [whole(p).detach() for p in resumed.parameters()]
    cases.assert_close(weights, [p.detach() for p in alone.parameters()], 1e-9)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(folder[0])


def check_what_is_refused(rank):
    from torch.distributed.tensor import Replicate, Shard

    (mesh, _) = meshes()
    rows, weight, bias, ids, *_ = gates.values(classes=12)
    sharded, by_class = shard(weight, mesh), shard(bias, mesh)
    for given, message in (
        (
            (rows, shard(weight, mesh, Shard(1)), None, ids),
            r"weight: got placements \(Shard\(dim=1",
        ),
        ((rows, sharded, bias, ids), "bias: got Tensor for a weight that is"),
        ((rows, sharded, shard(bias, mesh, Replicate()), ids), "bias: got placements"),
        ((shard(rows, mesh), sharded, by_class, ids), "rows: got a DTensor among"),
        ((rows, sharded, by_class, ids + 12), "selected_ids: got class"),
        # Another batch on one of the ranks: other ids, then fewer sites.
        ((rows, sharded, by_class, ids if rank else ids.flip(0)), "got other ones on other ranks"),
        ((rows[rank:], sharded, by_class, ids[rank:]), "got other ones on other ranks"),
    ):
        with pytest.raises(ValueError, match=message):
            selected_log_probs(*given)
    # Replicated, it is an ordinary head.
    copies = [shard(t, mesh, Replicate()) for t in (weight, bias)]
    logp, log_z = selected_log_probs(rows, *copies, ids)
    cases.assert_close([logp, log_z], dense_selected_log_probs(rows, weight, bias, ids), 1e-12)
