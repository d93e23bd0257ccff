"""Losses under autocast with scaled gradients: as exact as dense, and skipped where dense skips."""

import counted
import pytest
import torch
import toy
from gates import rms
from torch import nn


class Model(nn.Module):
    """Half projections and joiner under autocast, as in the recipes, on features ``[B, T, X]``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.decoder = nn.Linear(toy.X, toy.X), nn.Linear(toy.X, toy.X)
        self.joiner = toy.TanhJoiner()

    def forward(self, k2, data, dtype):
        is_half = dtype != torch.float64
        with torch.autocast("cpu", dtype if is_half else torch.bfloat16, enabled=is_half):
            am, lm = self.encoder(data.am), self.decoder(data.lm)
            logits = self.joiner(*k2.do_rnnt_pruning(am, lm, data.ranges))
        return k2.rnnt_loss_pruned(
            logits.float() if is_half else logits, data.symbols, data.ranges, 0,
            data.boundary, reduction="sum",
        )  # fmt: skip


HALVES = [torch.bfloat16] + ([torch.float16] if torch.__version__ >= "2.3" else [])


def gradients(k2, dtype, scale, is_routed):
    model, data = Model(), toy.batch(k2)
    if dtype == torch.float64:
        model, data = model.double(), toy.batch(k2)
        data.am, data.lm = (x.detach().double() for x in (data.am, data.lm))
    if is_routed:
        with counted.routed():
            loss = model(k2, data, dtype)
    else:
        loss = model(k2, data, dtype)
    (loss * scale).backward()
    return [p.grad.double() / scale for p in model.parameters()]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.0**8, 2.0**16])
def test_scaled_losses_under_autocast_are_at_least_as_exact_as_dense(k2, dtype, scale):
    """And finite wherever the dense ones are."""
    exact = gradients(k2, torch.float64, 1.0, False)
    dense, routed = (gradients(k2, dtype, scale, is_routed) for is_routed in (False, True))
    eps = torch.finfo(dtype).eps
    for x, d, ref in zip(routed, dense, exact):
        if d.isfinite().all():
            assert x.isfinite().all()
            error, dense_error = rms(x - ref), rms(d - ref)
            assert error <= max(1.25 * dense_error, 2 * eps * rms(ref))


@pytest.mark.skipif(
    torch.float16 not in HALVES, reason="gradient scaling on a CPU is of torch 2.3: modern lane"
)
@pytest.mark.parametrize("overflows", ["loss", "features", "gradient"])
def test_a_step_that_overflows_is_skipped_as_dense_skips_it(k2, overflows):
    """With the scale halved, and the parameters and the optimizer's state as they were."""
    skipped, steps = [], []
    for is_routed in (False, True):
        model, data = Model(), toy.batch(k2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        factors = [1.0, {"loss": 1e35, "gradient": 1e4}.get(overflows, 1.0), 1.0]
        taken = []
        for step, factor in enumerate(factors):
            features = data.am.detach().clone()
            if overflows == "features" and step == 1:
                features[0, 3] = 1e6  # inf in half
            batch = toy.Batch(features, data.lm, data.ranges, data.symbols, data.boundary)
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            if is_routed:
                with counted.routed():
                    loss = model(k2, batch, torch.float16)
            else:
                loss = model(k2, batch, torch.float16)
            scaler.scale(loss * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            is_same = all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
            taken.append((is_same, scaler.get_scale()))
        skipped.append(taken)
        steps.append([p.detach() for p in model.parameters()])
    assert skipped[0] == skipped[1]
    assert [is_same for is_same, _ in skipped[0]] == [False, True, False]
    for x, d in zip(*steps):
        torch.testing.assert_close(x, d, rtol=0, atol=2.5e-3)  # two steps of Adam
