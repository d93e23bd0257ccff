"""Custom autograd functions, reentrant checkpoints among them, get tensors and lose no gradient."""

import counted
import pytest
import torch
import toy
import toy_joiner
import toy_simple
from torch.utils.checkpoint import checkpoint

import panda_icefall
from panda_icefall.routing import PandaError


class Projected(torch.autograd.Function):
    """Runs a projection itself, which would hand its result out as an opaque object."""

    @staticmethod
    def forward(ctx, projection, x):
        return projection(x)

    @staticmethod
    def backward(ctx, grad):
        return None, grad[..., :1].expand(*grad.shape[:-1], toy_simple.D_AM)


class KeepsInputs(torch.autograd.Function):
    """As the one by which checkpoints of torch 2.6 keep what they are given."""

    @staticmethod
    def forward(ctx, dummy, *args):
        ctx.args = args
        return torch.empty(0)

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError("nothing reads its result")


def test_what_a_checkpoint_keeps_for_its_second_run_stays_recorded(k2, monkeypatch):
    monkeypatch.setattr(torch.utils.checkpoint, "_NoopSaveInputs", KeepsInputs, raising=False)
    kept = []

    def hidden(am, lm):
        x = am + lm
        saver = KeepsInputs.apply(torch.empty(0, requires_grad=True), x)
        kept.append(saver.grad_fn)
        return torch.tanh(x)

    toy_joiner.compare(k2, hidden)
    assert len(kept) == 2
    assert all(node is not None for node in kept)


@pytest.mark.parametrize("names", [("am",), ("am", "lm")])
def test_reentrant_checkpoints_of_projections_keep_their_gradients(k2, names):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)

    def run():
        with torch.enable_grad():
            parts = {
                "am": (model.simple_am_proj, model.encoder(data.am)),
                "lm": (model.simple_lm_proj, model.decoder(data.lm)),
            }
            found = {
                name: checkpoint(*part, use_reentrant=True) if name in names else part[0](part[1])
                for name, part in parts.items()
            }
            model.zero_grad()
            loss = toy_simple.smoothed_loss(k2, found["am"], found["lm"], data)
            loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    dense = run()
    of_tensors = 2 if len(names) == 2 else 0
    with counted.deferred(model, 2 - of_tensors, of_tensors=of_tensors, materialised=None):
        ours, again = run(), run()
    status = panda_icefall.status()
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(again, dense, rtol=1e-11, atol=1e-13)
    for name in names:
        assert status.materialised[f"simple_{name}_proj: inside CheckpointFunction"] == 1


def test_a_projection_inside_a_custom_function_gives_a_tensor(k2):
    model, data = toy_simple.Transducer().double(), toy.batch(k2, torch.float64)
    with panda_icefall.patched(model=model):
        am = Projected.apply(model.simple_am_proj, model.encoder(data.am))
        assert isinstance(am, torch.Tensor)
        am.sum().backward()
    assert model.encoder.weight.grad is not None


def test_a_custom_function_that_gives_out_a_recorded_tensor_is_refused(k2):
    class Pruned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, am, lm, ranges):
            return k2.do_rnnt_pruning(am, lm, ranges)

    data = toy.batch(k2)
    refused = pytest.raises(PandaError, match="Pruned: its forward returned a recorded tensor")
    with panda_icefall.patched(), refused:
        Pruned.apply(data.am, data.lm, data.ranges)
