"""Batches, joiners and losses for ``transducer_loss``, and what they should give."""

import torch
from gates import rms
from lattice_oracle import LossKind, transducer_costs
from torch import nn

import panda_icefall

B, T, S, D, C = 4, 9, 5, 7, 13


class PlacingJoiner(nn.Module):
    """icefall's and NeMo's: it places am and lm itself."""

    def __init__(self, classes=C, scale=1.0):
        super().__init__()
        self.output = nn.Linear(D, classes)
        self.scale = scale

    def forward(self, am, lm):
        return self.output(torch.tanh(am.unsqueeze(2) + lm.unsqueeze(1))) * self.scale


KINDS = {
    "regular": ({}, LossKind()),
    "blank_last": ({"blank": -1}, LossKind(blank=C - 1)),
    "blank_inside": ({"blank": 6}, LossKind(blank=6)),
    "modified": ({"rnnt_type": "modified"}, LossKind(rnnt_type="modified")),
    "constrained": ({"rnnt_type": "constrained"}, LossKind(rnnt_type="constrained")),
    "one_sym": ({"one_sym_per_frame": True}, LossKind(rnnt_type="one_sym_per_frame")),
    "delay": ({"delay_penalty": 0.3}, LossKind(delay_penalty=0.3)),
    "delay_modified": (
        {"delay_penalty": 0.3, "rnnt_type": "modified"},
        LossKind(delay_penalty=0.3, rnnt_type="modified"),
    ),
    "hat": ({"use_hat_loss": True}, LossKind(head="hat")),
    "hat_fastemit": (
        {"use_hat_loss": True, "fastemit_lambda": 0.2},
        LossKind(head="hat", fastemit_lambda=0.2),
    ),
    "fastemit": ({"fastemit_lambda": 0.3}, LossKind(fastemit_lambda=0.3)),
    "clamp": ({"clamp": 0.05}, LossKind(clamp=0.05)),
    "clamp_fastemit": (
        {"clamp": 0.1, "fastemit_lambda": 0.5, "blank": C - 1},
        LossKind(clamp=0.1, fastemit_lambda=0.5, blank=C - 1),
    ),
    "multi_blank": (
        {"big_blank_durations": [2, 4], "blank": C - 1, "sigma": 0.1},
        LossKind(big_blank_durations=(2, 4), blank=C - 1, sigma=0.1),
    ),
    "multi_blank_all": (
        {"big_blank_durations": [8, 2, 3], "blank": 9, "fastemit_lambda": 0.2, "clamp": 0.2},
        LossKind(big_blank_durations=(8, 2, 3), blank=9, fastemit_lambda=0.2, clamp=0.2),
    ),
    "tdt": ({"durations": [0, 1, 2, 3]}, LossKind(durations=(0, 1, 2, 3))),
    "tdt_last": (
        {"durations": [0, 1, 4], "blank": -1, "sigma": 0.05},
        LossKind(durations=(0, 1, 4), blank=C - 4, sigma=0.05),
    ),
    "tdt_all": (
        {"durations": [0, 1, 2], "sigma": 0.02, "fastemit_lambda": 0.4, "clamp": 0.1},
        LossKind(durations=(0, 1, 2), sigma=0.02, fastemit_lambda=0.4, clamp=0.1),
    ),
    "tdt_delay": (
        {"durations": [1, 2], "delay_penalty": 0.1},
        LossKind(durations=(1, 2), delay_penalty=0.1),
    ),
}  # fmt: skip


def batch(kind, *, dtype=torch.float64, peak=1.0, seed=0):
    """A ragged batch: all frames, no symbols, one frame, more symbols than frames if legal."""
    g = torch.Generator().manual_seed(seed)
    am = torch.randn(B, T, D, generator=g, dtype=torch.float64) * peak
    lm = torch.randn(B, S + 1, D, generator=g, dtype=torch.float64) * peak
    blanks = range(kind.blank - len(kind.big_blank_durations), kind.blank + 1)
    labels = [c for c in range(C - len(kind.durations)) if c not in blanks]
    targets = torch.tensor(labels)[torch.randint(0, len(labels), (B, S), generator=g)]
    # A symbol in a frame of its own, and a blank after all of them.
    takes_frame = kind.rnnt_type != "regular" or 0 not in (kind.durations or (0,))
    frames, states = [T, 6, 1, 3], [S, 0, 0, 2 if takes_frame else 5]
    targets[3, states[3] :] = 99  # padding is not read
    targets[1:3] = -1
    return {
        "am": am.to(dtype).requires_grad_(),
        "lm": lm.to(dtype).requires_grad_(),
        "targets": targets,
        "logit_lengths": torch.tensor(frames),
        "target_lengths": torch.tensor(states),
    }


def upstream(like):
    """A gradient of another size for each utterance."""
    return torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=like.dtype)


def gradients(costs, inputs, joiner):
    """By am, lm and the joiner's parameters, of costs ``[B]`` in shares of their own."""
    leaves = [inputs["am"], inputs["lm"], *joiner.parameters()]
    return torch.autograd.grad((costs * upstream(costs)).sum(), leaves)


def oracle(joiner, inputs, kind, *, ranges=None):
    """Costs ``[B]`` and gradients in float64 from the logits of the same, widened, numbers."""
    wide = {
        key: x.detach().double().requires_grad_()
        for key, x in inputs.items()
        if key in ("am", "lm")
    }
    double = type(joiner)(joiner.output.out_features, joiner.scale).double()
    double.load_state_dict(joiner.state_dict())
    logits = double(wide["am"], wide["lm"])
    if ranges is not None:
        index = ranges.unsqueeze(-1).expand(*ranges.shape, logits.shape[-1])
        logits = logits.gather(2, index)
    costs = transducer_costs(
        logits, inputs["targets"], inputs["logit_lengths"], inputs["target_lengths"], kind, ranges
    )
    return costs.detach(), gradients(costs, wide, double)


def assert_close(found, expected, bound):
    """Relative RMS error of each at most the bound; what should be 0 is at most the bound."""
    for x, ref in zip(found, expected, strict=True):
        assert x.isfinite().all()
        assert rms(x - ref) <= bound * max(rms(ref), 1e-3), rms(x - ref) / max(rms(ref), 1e-3)


def full(joiner, inputs, **options):
    """The costs; the joiner is recorded, unless it is an ``Unrecordable``."""
    options = {"adjoint_tolerance": 0.0, "reduction": "none", **options}
    before = panda_icefall.status()
    loss = panda_icefall.transducer_loss(
        joiner, inputs["am"], inputs["lm"], inputs["targets"], inputs["logit_lengths"],
        inputs["target_lengths"], **options,
    )  # fmt: skip
    counted = panda_icefall.status() - before
    assert counted.losses_routed == int(not isinstance(joiner, Unrecordable))
    return loss


class Unrecordable:
    """A joiner's function, in which an operation cannot be recorded."""

    def __init__(self, joiner):
        self.joiner = joiner

    def __call__(self, am, lm):
        return there_and_back(self.joiner(am, lm))


def there_and_back(logits):
    return logits.roll(1, dims=-1).roll(-1, dims=-1)
