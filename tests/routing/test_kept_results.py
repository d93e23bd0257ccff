"""Results that were not recorded go on as recorded ones, and still behave as the tensors they are.

Each case is compared with the dense run of the same lines.
"""

import counted
import pytest
import torch
import toy
import toy_joiner
from torch import nn

import panda_icefall
from panda_icefall.routing import PandaError
from panda_icefall.routing.deferred import DeferredJoint


def flipped(am, lm):
    """A result that no rule records."""
    return torch.flip(am + lm, (-1,))


def in_place_twice(am, lm):
    x = flipped(am, lm)
    y = x.mul_(2)
    y += 1
    return torch.tanh(x)


def in_place_without_a_rule(am, lm):
    x = flipped(am, lm)
    y = x * 2
    x.index_fill_(-1, torch.tensor([1]), 0.5)
    return torch.tanh(x + y)


def item_assigned(am, lm):
    x = am + lm
    y = x + 1
    x[..., 2] = 0.25
    return torch.tanh(x) * y


def seen_then_changed(am, lm):
    x = am + lm
    assert x.mean().item() == x.mean().item()
    y = x * 2
    x.clamp_(-1, 1)
    return y + x


def a_view_of_a_recorded_tensor_changed(am, lm):
    x = am + lm
    flat = x.view(-1, toy.X)
    first = x[..., :3]
    y = flat * 2
    first.add_(1)
    flat[:, 4:].sub_(1)
    return torch.tanh(x) + y.view(x.shape)


def a_view_read_after_its_base_was_changed(am, lm):
    x = am + lm
    flat = x.view(-1, toy.X)
    x.mul_(0.5)
    return torch.tanh(flat).view(x.shape)


def a_detached_alias_changed(am, lm):
    x = flipped(am, lm)
    y = x * 2
    with torch.no_grad():
        x.detach().mul_(0.5)
    return torch.tanh(x) + y


def a_clone_stays(am, lm):
    x = flipped(am, lm)
    copy = x.clone()
    x.sub_(1)
    return torch.tanh(x) + copy


def out_argument(am, lm):
    with torch.no_grad():
        x = torch.flip(am.detach() + lm.detach(), (-1,))
        torch.neg(x, out=x)
    return torch.tanh(am + lm) + x


def without_gradients(am, lm):
    with torch.no_grad():
        mask = flipped(am, lm).sigmoid()
    return torch.tanh(am + lm) * mask


def of_flat_rows(am, lm):
    x = torch.flip((am + lm).flatten(0, 2), (-1,))
    x.mul_(2)
    return torch.tanh(x).unflatten(0, am.shape[:3])


def of_moved_channels(am, lm):
    x = torch.flip((am + lm).permute(0, 3, 1, 2), (1,))
    x = torch.relu(x * torch.linspace(0, 1, toy.X, dtype=x.dtype)[:, None, None])
    return x.permute(0, 2, 3, 1)


def of_ordinary_tensors(am, lm):
    x = flipped(am, lm)
    scale = torch.linspace(0, 1, toy.X).type_as(x).expand_as(x)
    return torch.tanh(x * scale + x.new_ones(toy.X))


@pytest.mark.parametrize(
    "hidden",
    [
        in_place_twice,
        in_place_without_a_rule,
        item_assigned,
        seen_then_changed,
        a_view_of_a_recorded_tensor_changed,
        a_view_read_after_its_base_was_changed,
        a_detached_alias_changed,
        a_clone_stays,
        out_argument,
        without_gradients,
        of_flat_rows,
        of_moved_channels,
        of_ordinary_tensors,
    ],
)
def test_kept_results_behave_as_the_tensors_they_are(k2, hidden):
    toy_joiner.compare(k2, hidden, materialised=None)


def test_backward_and_hooks_through_a_kept_result(k2):
    data = toy.batch(k2, torch.float64)

    def run():
        x = flipped(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges))
        seen = []
        x.register_hook(lambda grad: seen.append(grad.clone()))
        loss = (x * 2).exp().sum()
        loss.backward(inputs=[data.am])
        grad, data.am.grad = data.am.grad, None
        return grad, seen[0], x.grad_fn.name()

    dense = run()
    with panda_icefall.patched():
        routed = run()
    torch.testing.assert_close(routed[:2], dense[:2], rtol=1e-12, atol=0)
    assert routed[2] == dense[2]


def test_a_kept_result_is_counted_once_however_it_is_used(k2):
    data = toy.batch(k2)
    with panda_icefall.patched():
        x = flipped(*k2.do_rnnt_pruning(data.am, data.lm, data.ranges))
        assert isinstance(x, DeferredJoint)
        assert isinstance(x.max(), torch.Tensor)
        assert isinstance(torch.flip(x, (-1,)), DeferredJoint)
        assert x.layout == torch.strided
    assert panda_icefall.status().materialised == {"flip": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(0),
        lambda x: x > 0.5,
        lambda x: torch.flip(x, (-1,))[..., 0],
        lambda x: torch.stack([x, x]),
        lambda x: x.long(),
    ],
)
def test_other_results_are_ordinary_tensors(k2, function):
    data = toy.batch(k2)
    with panda_icefall.patched():
        am, lm = k2.do_rnnt_pruning(data.am, data.lm, data.ranges)
        x = am + lm
        x.materialise("test")
        found = function(x)
    expected = function((am + lm).materialise("test"))
    if not isinstance(found, torch.Tensor):
        assert found.dtype == torch.bool
        found = found.materialise("test")
    assert torch.equal(found, expected)


def test_a_tensor_changed_behind_the_back_of_what_was_recorded_is_refused(k2):
    data, joiner = toy.batch(k2), nn.Linear(toy.X, toy.C)
    with counted.routed(0, materialised={"flip": 1}):
        x = flipped(*k2.do_rnnt_pruning(data.am.detach(), data.lm.detach(), data.ranges))
        logits = joiner(torch.tanh(x))
        x.materialise("test").zero_()
        with pytest.raises(PandaError, match="changed in place before the loss"):
            k2.rnnt_loss_pruned(logits, data.symbols, data.ranges, 0, data.boundary)


def test_no_name_of_ours_hides_a_tensors_own():
    answered = set("device dtype is_cpu is_cuda is_meta ndim requires_grad".split())
    ours = {n for n in dir(DeferredJoint) if not n.startswith("_") and hasattr(torch.Tensor, n)}
    assert ours == answered | {"shape"}
