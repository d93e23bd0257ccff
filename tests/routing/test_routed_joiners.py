"""Joiners as icefall writes them: routed loss and gradients equal the dense ones."""

import counted
import pytest
import torch
import torch.nn.functional as F
import toy
import toy_joiner
from dispatch import LargestTensor
from torch import nn

import panda_icefall

JOINERS = [
    toy.TanhJoiner,
    toy.TwoLinearJoiner,
    toy.ScaledHeadJoiner,
    toy.ProjectingJoiner,
    toy.ContextJoiner,
]


@pytest.mark.parametrize("make", JOINERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("workspace_mib", [0.003, 8])
def test_a_joiner_is_routed_exactly(k2, make, dtype, workspace_mib):
    torch.manual_seed(1)
    joiner, data = make().to(dtype), toy.batch(k2, dtype)
    dense = toy.loss_and_gradients(k2, joiner, data)
    with counted.routed(workspace_mib=workspace_mib, adjoint_tolerance=0):
        routed = toy.loss_and_gradients(k2, joiner, data)
    toy.assert_same(routed, dense, 1e-12 if dtype == torch.float64 else 2e-6)
    status = panda_icefall.status()
    assert status.sites == toy.B * toy.T * data.ranges.shape[2]
    assert 0 < status.sites_backward <= status.sites_evaluated < status.sites


@pytest.mark.parametrize(
    "arguments",
    [
        {"reduction": "none"},
        {"reduction": "mean"},
        {"delay_penalty": 0.1},
        {"rnnt_type": "modified"},
        {"rnnt_type": "constrained", "delay_penalty": 0.05, "reduction": "none"},
    ],
    ids=str,
)
def test_k2s_own_options_are_kept(k2, arguments):
    # k2 computes the delay penalty in float32 whatever the dtype of the logits.
    bound = 1e-7 if "delay_penalty" in arguments else 1e-12
    toy_joiner.compare(k2, toy.TanhJoiner, bound=bound, **arguments)


def test_the_default_tolerance_stays_below_float32_rounding(k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    dense = toy.loss_and_gradients(k2, joiner, data)
    with counted.routed():
        routed = toy.loss_and_gradients(k2, joiner, data)
    status = panda_icefall.status()
    toy.assert_same(routed, dense, 2e-6)
    assert status.adjoint_mass_skipped <= 2**-24 * status.adjoint_mass


def test_without_a_boundary_every_site_is_evaluated(k2):
    torch.manual_seed(1)
    joiner, data = toy.TanhJoiner().double(), toy.batch(k2, torch.float64)
    s_begin = torch.arange(toy.T).mul(toy.S + 1 - toy.S_RANGE).div(toy.T - 1).long()
    data.ranges = (s_begin[:, None] + torch.arange(toy.S_RANGE)).expand(toy.B, -1, -1).contiguous()
    data.boundary = None
    dense = toy.loss_and_gradients(k2, joiner, data)
    with counted.routed(adjoint_tolerance=0):
        routed = toy.loss_and_gradients(k2, joiner, data)
    toy.assert_same(routed, dense, 1e-12)
    assert panda_icefall.status().sites_evaluated == panda_icefall.status().sites


def test_validation_under_no_grad_is_routed(k2):
    joiner, data = toy.TanhJoiner().eval(), toy.batch(k2)
    with torch.no_grad():
        dense = toy.pruned_loss(k2, joiner, data)
        with counted.routed():
            routed = toy.pruned_loss(k2, joiner, data)
    torch.testing.assert_close(routed, dense)
    assert not routed.requires_grad


def test_decoding_through_the_same_joiner_is_untouched(k2):
    joiner = toy.TanhJoiner()
    am, lm = torch.randn(2, 1, 1, toy.X), torch.randn(2, 1, 1, toy.X)
    before = joiner(am, lm)
    with panda_icefall.patched():
        after = joiner(am, lm)
    assert isinstance(after, torch.Tensor)
    assert torch.equal(before, after)


def test_bfloat16_autocast_is_at_least_as_accurate_as_the_eager_joiner(k2):
    torch.manual_seed(1)
    joiner, data = toy.TwoLinearJoiner(), toy.batch(k2)
    exact = toy.loss_and_gradients(k2, joiner, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dense = toy.loss_and_gradients(k2, joiner, data)
        with counted.routed(adjoint_tolerance=0):
            routed = toy.loss_and_gradients(k2, joiner, data)
    assert routed[0].dtype == torch.float32
    # The hidden activations round in bfloat16 in both; what follows rounds in the dense one only.
    assert abs(routed[0] - exact[0]) <= 1.25 * abs(dense[0] - exact[0]) + 2**-8 * abs(exact[0])
    for x, y, ref in zip(routed[1], dense[1], exact[1]):
        assert (x - ref).norm() <= 1.25 * (y - ref).norm() + 2**-8 * ref.norm()


def test_autocast_that_only_the_joiner_sees_is_captured(k2):
    class HalfJoiner(toy.TanhJoiner):
        def forward(self, am, lm):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(am, lm)

    torch.manual_seed(1)
    joiner, data = HalfJoiner().double().float(), toy.batch(k2)
    with panda_icefall.patched():
        logits = joiner(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges))
    assert logits.dtype == torch.bfloat16


def test_under_autocast_no_head_is_cast_to_learn_its_dtype(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    joiner.output_linear = torch.nn.Linear(toy.X, 5000)
    with panda_icefall.patched():
        pruned = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        with torch.autocast("cpu", dtype=torch.bfloat16), LargestTensor() as largest:
            logits = joiner(*pruned)
        assert logits.dtype == torch.bfloat16
    assert largest.elements < 100


@pytest.mark.parametrize("use_autocast", [False, True])
def test_a_head_that_does_not_fit_is_refused_as_by_torch(k2, use_autocast):
    data = toy.batch(k2)
    heads = {
        "mat1 and mat2": (torch.zeros(5, toy.X + 1), None),
        "expand|match|size": (torch.zeros(5, toy.X), torch.zeros(4)),
    }
    for message, (weight, bias) in heads.items():
        with panda_icefall.patched():
            am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
            autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=use_autocast)
            with autocast, pytest.raises(RuntimeError, match=message):
                F.linear(am + lm, weight, bias)


def test_forward_hooks_that_look_for_tensors_pass_the_deferred_object_by(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    seen = []
    for module in joiner.modules():
        module.register_forward_hook(lambda m, i, o: seen.append(isinstance(o, torch.Tensor)))
    with counted.routed():
        toy.loss_and_gradients(k2, joiner, data)
    assert seen == [False, False]


def around(operation):
    """A joiner with an operation of the test between the sum and the head."""
    return toy.HiddenJoiner(lambda am, lm: operation(am + lm))


@pytest.mark.parametrize(
    ("operation", "name", "dense_losses"),
    [
        (lambda x: torch.cumprod(x, dim=-1), "cumprod", 0),
        (lambda x: x.detach() + x, "detach", 0),
        (lambda x: torch.softmax(x, dim=1), "softmax", 0),
        (lambda x: torch.stack([x, x]).sum(0), "stack", 2),
        (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2), "transpose", 2),
    ],
)
def test_what_cannot_be_recorded_materialises_once_and_stays_exact(
    k2, operation, name, dense_losses, caplog
):
    torch.manual_seed(1)
    joiner, data = around(operation).double(), toy.batch(k2, torch.float64)
    dense = toy.loss_and_gradients(k2, joiner, data)
    once_per_batch = {name: 2}
    with counted.routed(2 - dense_losses, dense=dense_losses, materialised=once_per_batch):
        routed = toy.loss_and_gradients(k2, joiner, data)
        again = toy.loss_and_gradients(k2, joiner, data)
    toy.assert_same(routed, dense, 1e-12)
    toy.assert_same(again, dense, 1e-12)
    assert sum(name in message for message in caplog.messages) == 1


def test_dropout_in_training_keeps_the_dense_random_draw(k2):
    torch.manual_seed(1)
    dropout = nn.Dropout(0.4)
    joiner, data = around(dropout), toy.batch(k2)
    torch.manual_seed(2)
    dense = toy.loss_and_gradients(k2, joiner, data)
    torch.manual_seed(2)
    with counted.routed(2):
        toy.assert_same(toy.loss_and_gradients(k2, joiner, data), dense, 1e-6)
        dropout.eval()
        toy.loss_and_gradients(k2, joiner, data)


def test_a_joiner_that_was_run_without_gradients_gives_a_loss_without_them(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    with counted.routed():
        with torch.no_grad():
            logits = joiner(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges))
        loss = k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)
    assert not loss.requires_grad


def test_in_place_activations_are_recorded(k2):
    class InPlace(toy.TanhJoiner):
        def forward(self, am, lm):
            hidden = am + lm
            hidden.tanh_()
            hidden = hidden * 2.0
            return self.output_linear(nn.functional.relu(hidden, inplace=True))

    toy_joiner.compare(k2, InPlace)


def test_a_no_grad_region_inside_the_joiner_does_not_gain_gradients(k2):
    class Stopped(toy.TanhJoiner):
        def forward(self, am, lm):
            with torch.no_grad():
                frozen = torch.tanh(am + lm)
            return self.output_linear(frozen + am)

    torch.manual_seed(1)
    joiner, data = Stopped().double(), toy.batch(k2, torch.float64)

    def run():
        loss = toy.pruned_loss(k2, joiner, data)
        return loss.detach(), torch.autograd.grad(loss, [data.am, *joiner.parameters()])

    dense = run()
    with counted.routed(materialised={"__add__": 3}, adjoint_tolerance=0):
        routed = run()
    toy.assert_same(routed, dense, 1e-12)


def test_nan_activations_give_the_dense_nan_loss(k2):
    joiner, data = toy.TanhJoiner(), toy.batch(k2)
    with torch.no_grad():
        data.am[0, 2, 1] = float("nan")
    dense = toy.pruned_loss(k2, joiner, data, reduction="none")
    with counted.routed():
        routed = toy.pruned_loss(k2, joiner, data, reduction="none")
        routed.sum().backward()
    assert torch.equal(routed.isnan(), dense.isnan())
    assert routed.isnan().tolist() == [True, False, False]


def test_tensor_stand_ins_answer_like_the_tensor(k2):
    data = toy.batch(k2)
    with panda_icefall.patched():
        am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        for joint in (am, lm):
            shape = (toy.B, toy.T, toy.S_RANGE, toy.X)
            assert joint.shape == joint.size() == shape
            assert (joint.ndim, joint.dim(), joint.numel()) == (4, 4, am.shape.numel())
            assert joint.size(-1) == toy.X
            assert joint.dtype == torch.float32
            assert joint.requires_grad
            assert joint.device == data.am.device
            assert joint.is_floating_point()
            assert not joint.is_cuda
            assert joint.reshape(*shape) is joint
            assert joint.to(torch.float32) is joint
        with pytest.raises(AttributeError, match="no attribute 'no_such_thing'"):
            am.no_such_thing  # noqa: B018
    assert panda_icefall.status().materialised == {}
