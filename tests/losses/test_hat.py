"""The HAT loss against an expression of its own, all paths, and the gates of the normaliser."""

import functools

import gates
import pytest
import torch
import torch.nn.functional as F
from dispatch import LargestTensor
from pruned_losses import selected_pruned

from panda_icefall.losses.dense import rnnt_loss_pruned
from panda_icefall.losses.heads import HatHead
from panda_icefall.normalizer import RowLogits, RowProgram, TileOptions
from panda_icefall.normalizer.op import select

B, T, S, S_RANGE, H, C = 3, 7, 4, 3, 6, 11
TYPES = ["regular", "modified", "constrained"]


def hat_distribution(logits):
    """``[..., C + 1]`` log-probs; the last column is what k2 gives a symbol that is the blank."""
    blank, labels = logits[..., :1], logits[..., 1:]
    symbols = labels.log_softmax(-1) + F.logsigmoid(-blank)
    as_symbol = F.logsigmoid(blank) - labels.logsumexp(-1, keepdim=True)
    return torch.cat([F.logsigmoid(blank), symbols, as_symbol], dim=-1)


def lattice(has_boundary=True):
    """A full, a short and an empty utterance; the padding is the blank."""
    g = torch.Generator().manual_seed(2)
    boundary = torch.tensor([[0, 0, S, T], [0, 0, 2, 5], [0, 0, 0, 4]])
    symbols = torch.randint(1, C, (B, S), generator=g)
    symbols[torch.arange(S) >= boundary[:, 2:3]] = 0
    first = torch.tensor([[0, 0, 1, 1, 2, 2, 2], [0] * T, [0] * T])
    if not has_boundary:
        first = first[:1].expand(B, T)
    ranges = first.unsqueeze(2) + torch.arange(S_RANGE)
    return symbols, ranges.contiguous(), boundary if has_boundary else None


def head(dtype=torch.float64, blank_shift=0.0, seed=4):
    """Rows, weight and bias; ``blank_shift`` is added to the blank's logit."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(B * T * S_RANGE, H, generator=g, dtype=torch.float64)
    weight = torch.randn(C, H, generator=g, dtype=torch.float64)
    bias = torch.randn(C, generator=g, dtype=torch.float64)
    bias[0] += blank_shift
    return [t.to(dtype).requires_grad_() for t in (rows, weight, bias)]


def losses_by_paths(loss_by_paths, leaves, symbols, ranges, boundary, rnnt_type):
    logits = F.linear(*leaves).reshape(B, T, S_RANGE, C)
    losses = []
    for b in range(B):
        full = logits.new_zeros(T, S + 1, C + 1)
        frames = torch.arange(T).unsqueeze(1).expand(T, S_RANGE)
        full = full.index_put((frames, ranges[b]), hat_distribution(logits[b]))
        first = ranges[b, :, 0].tolist()
        losses.append(
            loss_by_paths(
                full,
                [C if symbol == 0 else symbol for symbol in symbols[b].tolist()],
                0,
                rnnt_type,
                limits=None if boundary is None else tuple(boundary[b].tolist()),
                kept=lambda t, s, first=first: first[t] <= s < first[t] + S_RANGE,
            )
        )
    return torch.stack(losses)


def outcome(losses, leaves):
    weights = torch.arange(1, B + 1, dtype=losses.dtype)
    return [losses.detach(), *torch.autograd.grad((losses * weights).sum(), leaves)]


def dense_losses(leaves, symbols, ranges, boundary, rnnt_type="regular"):
    logits = F.linear(*leaves).reshape(B, T, S_RANGE, C)
    return rnnt_loss_pruned(
        logits, symbols, ranges, 0, boundary, rnnt_type, reduction="none", use_hat_loss=True
    )


def selected_losses(leaves, symbols, ranges, boundary, rnnt_type="regular", **options):
    return selected_pruned(
        *leaves, symbols, ranges, 0, boundary, rnnt_type, reduction="none", use_hat_loss=True,
        adjoint_tolerance=0.0, **options,
    )  # fmt: skip


# A boundary of all frames and states hides nothing: then the padding is a symbol, as in k2.
@pytest.mark.parametrize("has_boundary", [True, False])
@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("losses", [dense_losses, selected_losses])
def test_loss_and_gradients_are_those_of_all_paths_in_the_band(
    loss_by_paths, losses, rnnt_type, has_boundary
):
    leaves, sites = head(), lattice(has_boundary)
    expected = outcome(losses_by_paths(loss_by_paths, leaves, *sites, rnnt_type), leaves)
    for x, ref in zip(outcome(losses(leaves, *sites, rnnt_type), leaves), expected):
        assert (x - ref).norm() <= 1e-12 * ref.norm()


@pytest.mark.parametrize("blank_shift", [40.0, -40.0])
def test_a_certain_blank_leaves_the_other_classes_exact(loss_by_paths, blank_shift):
    leaves, sites = head(blank_shift=blank_shift), lattice()
    truth = outcome(losses_by_paths(loss_by_paths, leaves, *sites, "regular"), leaves)
    found = outcome(selected_losses(leaves, *sites), leaves)
    for x, ref in zip(found, truth):
        assert (x - ref).norm() <= 1e-12 * ref.norm()
    labels = truth[2][1:]  # rows of the weight without the blank's
    assert labels.norm() > 1  # there is a gradient to lose
    assert (found[2][1:] - labels).norm() <= 1e-12 * labels.norm()


@pytest.mark.parametrize(
    ("scale", "blank_shift"), [(1e-3, 0.0), (30.0, 0.0), (1.0, 40.0), (1.0, -40.0)]
)
def test_in_float32_it_errs_at_most_twice_as_much_as_the_dense_loss(scale, blank_shift):
    """Squares summed over heads, as single heads err by a factor of 3 either way.

    A logit's own rounding, eps of its size, is the relative error of a probability: 4 eps of the
    logits' size are granted to either.
    """
    sites = lattice()
    grain = 4 * 2**-23 * max(1.0, scale * H**0.5)
    errors = torch.zeros(5, 3, dtype=torch.float64)  # of ours, of the dense loss; the norm
    for seed in range(8):
        leaves = head(torch.float32, blank_shift, seed)
        leaves[0] = (leaves[0].detach() * scale).requires_grad_()
        wide = [t.detach().double().requires_grad_() for t in leaves]
        truth = outcome(dense_losses(wide, *sites), wide)
        ours = outcome(selected_losses(leaves, *sites), leaves)
        plain = outcome(dense_losses(leaves, *sites), leaves)
        labels = [values[2][1:] for values in (ours, plain, truth)]  # without the blank's row
        for i, (x, y, ref) in enumerate([*zip(ours, plain, truth), labels]):
            errors[i] += torch.stack([(x - ref).norm(), (y - ref).norm(), ref.norm()]).square()
    for ours_error, dense_error, norm in errors.sqrt():
        assert norm > 0
        assert ours_error <= max(2 * dense_error, grain * norm)


def test_a_certain_blank_where_nothing_else_is_to_say_keeps_its_tiny_gradient():
    leaves = head(torch.float32, 20.0)
    symbols = torch.zeros(B, 0, dtype=torch.int64)
    ranges = torch.zeros(B, T, S_RANGE, dtype=torch.int64)[:, :, :1]
    rows = leaves[0][: B * T]
    loss = selected_pruned(
        rows, *leaves[1:], symbols, ranges, 0, use_hat_loss=True, reduction="sum"
    )
    (found,) = torch.autograd.grad(loss, leaves[1])
    wide = [t.detach().double().requires_grad_() for t in (rows, *leaves[1:])]
    (ref,) = torch.autograd.grad(-F.logsigmoid(F.linear(*wide)[:, 0]).sum(), wide[1])
    assert 0 < ref.norm() < 1e-4
    assert (found - ref).norm() <= 1e-5 * ref.norm()


def hat_op(rows, weight, bias, ids, **options):
    """The op as ``gates`` calls it: ``[N, 2]`` target and blank log-probs, and log_z."""
    log_probs = functools.partial(select, live=None, options=TileOptions(**options), counters=None)
    logits = RowLogits(RowProgram.of(rows), weight, bias)
    target, blank, log_z = HatHead().of_rows(logits, ids[:, 0], 0, log_probs)[:3]
    return torch.stack([target, blank], dim=1), log_z


def hat_expression(rows, weight, bias, ids):
    logits = F.linear(rows, weight, bias)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    distribution = hat_distribution(logits)
    targets = torch.where(ids[:, 0] == 0, logits.shape[1], ids[:, 0])
    target = distribution.gather(1, targets[:, None]).squeeze(1)
    return torch.stack([target, distribution[:, 0]], dim=1), logits[:, 1:].logsumexp(1)


def k2s_expression(rows, weight, bias, ids):
    """The dense path in the inputs' own dtype: what the op must not be worse than."""
    logits = F.linear(rows, weight, bias)
    logits = logits.float() if logits.dtype != torch.float64 else logits
    target, blank, log_z = HatHead().of_logits(logits, ids[:, 0], 0)[:3]
    return torch.stack([target, blank], dim=1), log_z


def gate_values(kind, sites=gates.N):
    rows, weight, bias, ids, adjoints, log_z_adjoints = gates.values(kind, sites=sites)
    ids = ids.clone()
    ids[::7] = 0  # padding
    return rows, weight, bias, ids, adjoints[:, :2], log_z_adjoints


@pytest.mark.parametrize("workspace_bytes", [2_000, 2**20])
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted", "negative"])
def test_gate_structure_in_float64(kind, workspace_bytes):
    data = gate_values(kind)
    op = functools.partial(hat_op, adjoint_tolerance=0.0, workspace_bytes=workspace_bytes)
    for name, x, ref in zip(gates.NAMES, gates.run(op, *data), gates.run(hat_expression, *data)):
        assert gates.rms(x - ref) <= 1e-12 * gates.rms(ref), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["flat", "peaked", "shifted"])
def test_gate_rounding(kind, dtype):
    data = gates.in_dtype(gate_values(kind, sites=640), dtype)
    truth = gates.run(hat_expression, *gates.in_dtype(data, torch.float64))
    plain = gates.run(k2s_expression, *data)
    factor, ulps, eps = (1.5, 4, 2**-23) if dtype == torch.float32 else (1.25, 1, 2**-8)
    for name, x, y, ref in zip(gates.NAMES, gates.run(hat_op, *data), plain, truth):
        if dtype == torch.float32 or name.startswith("d "):
            bound = max(factor * gates.rms(y - ref), ulps * eps * gates.rms(ref))
        else:  # log-probs of half inputs at float32's scale, which is that of the logits
            bound = 8 * 2**-23 * max(gates.rms(truth[1]), 1.0)
        assert gates.rms(x - ref) <= bound, name


def test_without_a_bias():
    rows, weight, _ = head()
    symbols, ranges, boundary = lattice()
    expected = outcome(
        dense_losses((rows, weight, weight.new_zeros(C)), symbols, ranges, boundary), [rows, weight]
    )
    found = outcome(
        selected_losses((rows, weight, None), symbols, ranges, boundary), [rows, weight]
    )
    for x, ref in zip(found, expected):
        assert (x - ref).norm() <= 1e-12 * ref.norm()


def test_no_tensor_is_larger_than_a_tile_or_an_input():
    sites, classes, workspace_bytes = 2_003, 1_013, 128 * 1024
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(sites, 24, generator=g).requires_grad_()
    weight = torch.randn(classes, 24, generator=g).requires_grad_()
    bias = torch.zeros(classes, requires_grad=True)
    ids = torch.randint(0, classes, (sites, 1), generator=g)
    with LargestTensor() as largest:
        logp, _ = hat_op(rows, weight, bias, ids, workspace_bytes=workspace_bytes)
        logp.sum().backward()
    assert largest.elements <= max(workspace_bytes // 4, sites * 24, classes * 24)
    assert largest.elements < sites * classes // 30


def on_the_dense_loss(classes, blank):
    symbols, ranges, boundary = lattice()
    logits = torch.zeros(B, T, S_RANGE, classes)
    rnnt_loss_pruned(logits, symbols % classes, ranges, blank, boundary, use_hat_loss=True)


def on_the_selected_loss(classes, blank):
    symbols, ranges, boundary = lattice()
    rows, weight, bias = head()
    selected_pruned(
        rows, weight[:classes], bias[:classes], symbols % classes, ranges, blank, boundary,
        use_hat_loss=True,
    )  # fmt: skip


@pytest.mark.parametrize("loss", [on_the_dense_loss, on_the_selected_loss])
def test_what_hat_is_not_defined_for_is_refused(loss):
    with pytest.raises(ValueError, match=r"use_hat_loss: got True for C=1, expected C >= 2"):
        loss(classes=1, blank=0)
    with pytest.raises(ValueError, match=r"termination_symbol: got 2, expected 0 with use_hat"):
        loss(classes=C, blank=2)
