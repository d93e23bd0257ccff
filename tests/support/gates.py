"""The numerical gates of the selected normaliser, shared by its tests and by the mutation tests.

A gate runs the op and a dense twin on the same values and raises AssertionError when the op's error
against float64 is larger than the rule allows (rules and figures: see the docstrings).
"""

import torch
from oracle import dense_selected_log_probs

from panda_icefall.normalizer import selected_log_probs

N, H, C, K = 97, 13, 211, 3


def values(kind="flat", classes=C, seed=0, sites=N, hidden=H):
    """float64 ``rows, weight, bias, ids, adjoints, log_z_adjoints`` of one kind of logits."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    rows, weight, bias = randn(sites, hidden), randn(classes, hidden) / hidden**0.5, randn(classes)
    if kind == "peaked":
        rows = rows * 8
    if kind == "shifted":
        bias = bias + 100
    if kind == "negative":
        bias = bias - 500
    ids = torch.randint(0, classes, (sites, K), generator=g)
    ids[::3, 1] = ids[::3, 0]  # duplicates: symbol == blank
    ids[1::5, 2] = classes - 1  # the last class of the last tile
    adjoints = randn(sites, K)
    adjoints = adjoints + 0.1 * adjoints.sign()  # every site matters
    return rows, weight, bias, ids, adjoints, randn(sites)


def in_dtype(data, dtype):
    """The floating point tensors of ``values`` in another dtype."""
    return [t.to(dtype) if t.is_floating_point() else t for t in data]


def run(op, rows, weight, bias, ids, adjoints, log_z_adjoints):
    """Outputs and gradients ``[selected_logp, log_z, d rows, d weight, d bias]`` of an op."""
    leaves = [t.detach().clone().requires_grad_() for t in (rows, weight, bias)]
    selected_logp, log_z = op(*leaves, ids)
    dtype = selected_logp.dtype
    total = (selected_logp * adjoints.to(dtype)).sum() + (log_z * log_z_adjoints.to(dtype)).sum()
    grads = torch.autograd.grad(total, leaves)
    return [t.detach() for t in (selected_logp, log_z, *grads)]


def dense(rows, weight, bias, ids):
    """The dense path in the inputs' own dtype: what the op must not be worse than."""
    logits = torch.nn.functional.linear(rows, weight, bias)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    log_z = logits.logsumexp(dim=1)
    return logits.gather(1, ids) - log_z[:, None], log_z


def rms(x):
    return x.double().pow(2).mean().sqrt().item()


NAMES = ("selected_logp", "log_z", "d rows", "d weight", "d bias")


def structure_gate(kind="flat", classes=C, **op_args):
    """Gate 1: float64, relative RMS error at most 1e-12 on outputs and gradients."""
    data = values(kind, classes)
    op_args = {"adjoint_tolerance": 0.0, **op_args}
    ours = run(lambda *a: selected_log_probs(*a, **op_args), *data)
    truth = run(dense_selected_log_probs, *data)
    for name, x, ref in zip(NAMES, ours, truth):
        assert rms(x - ref) <= structure_bound(rms(ref), classes), name


def structure_bound(reference, classes):
    """What gate 1 allows, of the RMS of the exact values."""
    # A single class has log-prob 0 everywhere: then the error itself is bounded.
    return 1e-12 * max(reference, 1.0 if classes == 1 else 0.0)


def rounding_gate(dtype=torch.float32, kind="flat", hidden=H, classes=C, **op_args):
    """Gate 2: error e against float64 of the same rounded inputs; d is the dense path's own error.

    float32: e <= max(1.5 d, 4 ulp). Half gradients: e <= max(1.25 d, 1 ulp). 1 ulp is
    eps * RMS(ref) with eps 2^-23 for float32 and 2^-8 for bfloat16.
    """
    data = in_dtype(values(kind, classes, sites=640, hidden=hidden), dtype)
    ours = run(lambda *a: selected_log_probs(*a, **op_args), *data)
    plain = run(dense, *data)
    truth = run(dense_selected_log_probs, *in_dtype(data, torch.float64))
    for name, x, y, ref in zip(NAMES, ours, plain, truth):
        if dtype != torch.float32 and not name.startswith("d "):
            continue  # half log-probs have a stricter gate of their own
        assert rms(x - ref) <= rounding_bound(dtype, rms(y - ref), rms(ref)), name


def rounding_bound(dtype, dense_error, reference):
    """What gate 2 allows, of the RMS of the dense path's error and of the exact values."""
    factor, ulps, eps = (1.5, 4, 2**-23) if dtype == torch.float32 else (1.25, 1, 2**-8)
    return max(factor * dense_error, ulps * eps * reference)


def low_precision_gate(dtype=torch.bfloat16, kind="flat", **op_args):
    """Gate 3: log-probs of half inputs against float64 of the same inputs, at float32's scale.

    The logits are of the size of log_z, and that size is what float32 can resolve of them.
    """
    data = in_dtype(values(kind), dtype)
    ours = run(lambda *a: selected_log_probs(*a, **op_args), *data)[:2]
    truth = run(dense_selected_log_probs, *in_dtype(data, torch.float64))
    for name, x, ref in zip(NAMES, ours, truth):
        assert rms(x - ref) <= low_precision_bound(rms(truth[1])), name


def low_precision_bound(log_z):
    """What gate 3 allows, of the RMS of the exact log_z."""
    return 8 * torch.finfo(torch.float32).eps * max(log_z, 1.0)


def nan_last(ratio):
    """A key for ``max`` that has NaN as the largest number."""
    return float("inf") if ratio != ratio else ratio
