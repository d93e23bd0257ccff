"""The baselines are right: else being faster or smaller than them would mean nothing."""

import pytest
import torch
import torch.nn.functional as F
from benchmarks.agreement import Reference
from benchmarks.arms import Step, arms_of
from benchmarks.class_tiles import class_tiled_log_probs
from benchmarks.inputs import LossInputs
from benchmarks.row_tiles import checkpointed_row_log_probs, chunked_row_log_probs
from benchmarks.shapes import LossShape
from benchmarks.sites import SiteInputs

SHAPE = LossShape(B=3, T=11, S=5, s_range=4, C=37, H=7, D=6, shortest=0.4)
CPU = torch.device("cpu")
ROW_BYTES = 8 * SHAPE.C


def double_sites(seed=0):
    """The sites of a ragged batch in float64, with peaked logits, and adjoints on the live ones."""
    inputs = LossInputs.random(SHAPE, CPU, seed)
    g = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).mul_(3).requires_grad_()

    am, lm = leaf(SHAPE.B, SHAPE.T, SHAPE.H), leaf(SHAPE.B, SHAPE.S + 1, SHAPE.H)
    weight, bias = leaf(SHAPE.C, SHAPE.H), leaf(SHAPE.C)
    sites = SiteInputs.make(am, lm, weight, bias, inputs.symbols, inputs.ranges, inputs.boundary, 0)
    adjoints = torch.zeros(sites.ids.shape, dtype=torch.float64)
    adjoints[sites.live] = torch.randn(len(sites.live), 2, generator=g, dtype=torch.float64)
    return sites, adjoints


def log_probs_and_gradients(method, sites, adjoints):
    logp = torch.stack([part.reshape(-1) for part in method(sites)], dim=1)
    leaves = (sites.am, sites.lm, sites.weight, sites.bias)
    return [logp[sites.live], *torch.autograd.grad(logp, leaves, adjoints)]


def dense(sites):
    logits = F.linear(sites.hidden(), sites.weight, sites.bias)
    return sites.on_grid(logits.log_softmax(dim=1).gather(1, sites.ids))


@pytest.mark.parametrize("tile_classes", [1, 5, 37, 1000])
def test_class_tiles_equal_the_dense_log_probs_and_gradients(tile_classes):
    sites, adjoints = double_sites()
    ours = log_probs_and_gradients(
        lambda s: class_tiled_log_probs(s, tile_classes), sites, adjoints
    )
    for mine, theirs in zip(ours, log_probs_and_gradients(dense, sites, adjoints)):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("method", [checkpointed_row_log_probs, chunked_row_log_probs])
@pytest.mark.parametrize("tile_bytes", [1, 7 * ROW_BYTES, 2**30])
def test_row_tiles_equal_the_dense_log_probs_and_gradients(method, tile_bytes):
    sites, adjoints = double_sites(seed=1)
    ours = log_probs_and_gradients(lambda s: method(s, tile_bytes), sites, adjoints)
    for mine, theirs in zip(ours, log_probs_and_gradients(dense, sites, adjoints)):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_checkpointed_rows_keep_no_logits_and_chunks_keep_all():
    kept = {}
    for name, method in (
        ("tiles", checkpointed_row_log_probs),
        ("chunks", chunked_row_log_probs),
    ):
        sites, _ = double_sites()
        saved = []

        def keep(tensor, saved=saved):
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            method(sites, 7 * ROW_BYTES)
        kept[name] = sum(t.numel() for t in saved if t.shape[-1:] == (SHAPE.C,) and t.dim() == 2)
    assert kept["tiles"] == 0
    assert kept["chunks"] >= len(sites.live) * SHAPE.C


def test_class_tiles_go_over_all_sites_and_row_tiles_over_the_live_ones():
    sites, _ = double_sites()
    assert len(sites.live) < SHAPE.sites
    outside = torch.ones(SHAPE.sites, dtype=torch.bool)
    outside[sites.live] = False
    assert (class_tiled_log_probs(sites)[1].reshape(-1)[outside] != 0).all()
    assert (checkpointed_row_log_probs(sites)[1].reshape(-1)[outside] == 0).all()


@pytest.mark.parametrize("part", ["whole", "simple", "pruned"])
def test_every_method_agrees_with_the_dense_loss(part):
    inputs = LossInputs.random(SHAPE, CPU)
    reference = Reference(Step.make("dense", part, inputs))
    assert len(arms_of(part)) > 1
    for arm in arms_of(part):
        agreement = reference.against(Step.make(arm, part, inputs))
        assert agreement.moved_frames == 0, arm
        assert agreement.loss_rel < 1e-6, arm
        assert agreement.worst_grad_rel_l2 < 2e-5, arm


def test_a_method_that_was_not_routed_is_refused(monkeypatch):
    step = Step.make("panda", "pruned", LossInputs.random(SHAPE, CPU))
    monkeypatch.setattr(step.model.joiner, "forward", lambda am, lm: step.model.joiner
                        .output_linear(torch.cumsum(am + lm, dim=2)))  # fmt: skip
    with pytest.raises(RuntimeError, match="the pruned loss was not routed"):
        step.run()
