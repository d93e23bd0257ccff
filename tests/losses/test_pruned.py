"""The pruned loss from rows (gate 4): against k2 on float64 logits, and against the dense twin."""

import pytest
import torch
import torch.nn.functional as F
from pruned_losses import selected_pruned

from panda_icefall.losses import dense

B, T, S, S_RANGE, H, C = 4, 13, 9, 5, 6, 17


def problem(dtype=torch.float64, blank=0, classes=C, s_range=S_RANGE, scale=1.0):
    """Ragged utterances (full, short, one frame, no symbols) and ranges that climb to each end."""
    g = torch.Generator().manual_seed(11)
    rows = (scale * torch.randn(B * T * s_range, H, generator=g, dtype=dtype)).requires_grad_()
    weight = torch.randn(classes, H, generator=g, dtype=dtype).requires_grad_()
    bias = torch.randn(classes, generator=g, dtype=dtype).requires_grad_()
    symbols = torch.randint(0, classes, (B, S), generator=g)  # symbol == blank is legal
    boundary = torch.tensor(
        [[0, 0, S, T], [0, 0, 5, 9], [0, 0, min(s_range, S) - 1, 1], [0, 0, 0, 7]]
    )
    frame = torch.arange(T)[None, :]
    last = (boundary[:, 2:3] - s_range + 1).clamp(min=0)
    climb = (frame * last / (boundary[:, 3:4] - 1).clamp(min=1)).ceil().long()
    start = torch.where(frame >= boundary[:, 3:4] - 1, last, torch.minimum(climb, last))
    ranges = start[:, :, None] + torch.arange(s_range)
    lattice = {
        "symbols": symbols,
        "ranges": ranges,
        "termination_symbol": blank,
        "boundary": boundary,
    }
    return (rows, weight, bias), lattice


def outcome(loss, leaves):
    weights = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return [loss.detach(), *torch.autograd.grad((loss * weights).sum(), leaves)]


def ours(head, lattice, **options):
    loss = selected_pruned(*head, **lattice, adjoint_tolerance=0.0, **options)
    return outcome(loss, head)


def on_logits(function, head, lattice, **options):
    rows, weight, bias = head
    shape = (*lattice["ranges"].shape, weight.shape[0])
    return outcome(
        function(F.linear(rows, weight, bias).reshape(shape), **lattice, **options), head
    )


CASES = [
    {"reduction": "none"},
    {"reduction": "mean"},
    {"reduction": "sum", "delay_penalty": 0.1},
    {"reduction": "none", "rnnt_type": "modified"},
    {"reduction": "none", "rnnt_type": "constrained"},
]

HAT_CASES = [
    {"use_hat_loss": True, "reduction": "none"},
    {"use_hat_loss": True, "reduction": "mean", "delay_penalty": 0.1},
    {"use_hat_loss": True, "reduction": "none", "rnnt_type": "modified"},
    {"use_hat_loss": True, "reduction": "none", "rnnt_type": "constrained"},
]


def for_type(head, lattice, rnnt_type):
    """Modified lattices need T >= S in each utterance: the one-frame one keeps one symbol."""
    if rnnt_type != "regular":
        lattice["boundary"][2] = torch.tensor([0, 0, 1, 4])
    return head, lattice


def assert_close(left, right, bound):
    for x, y in zip(left, right):
        finite = torch.isfinite(y)
        assert torch.equal(finite, torch.isfinite(x))
        assert torch.equal(x[~finite], y[~finite])
        assert (x - y)[finite].norm() <= bound * max(y[finite].norm(), 1.0)


@pytest.mark.parametrize("options", CASES + HAT_CASES, ids=str)
@pytest.mark.parametrize("workspace_bytes", [700, 2**20])
def test_the_selected_loss_is_the_dense_twins(options, workspace_bytes):
    head, lattice = for_type(*problem(), options.get("rnnt_type", "regular"))
    expected = on_logits(dense.rnnt_loss_pruned, head, lattice, **options)
    assert_close(ours(head, lattice, workspace_bytes=workspace_bytes, **options), expected, 1e-12)


@pytest.mark.k2
@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_selected_loss_is_k2s(options):
    import k2

    head, lattice = for_type(*problem(), options.get("rnnt_type", "regular"))
    expected = on_logits(k2.rnnt_loss_pruned, head, lattice, **options)
    # k2 makes the delay penalty in float32.
    assert_close(ours(head, lattice, **options), expected, 1e-7 if len(options) > 1 else 1e-12)


@pytest.mark.k2
def test_a_full_lattice_is_torchaudios_rnnt_loss():
    import torchaudio

    (rows, weight, bias), _ = problem(torch.float32, s_range=S + 1)
    lens = torch.tensor([[S, T], [5, 9], [1, 4], [3, 7]], dtype=torch.int32)
    boundary = torch.zeros(B, 4, dtype=torch.int64)
    boundary[:, 2:] = lens
    symbols = torch.randint(1, C, (B, S), generator=torch.Generator().manual_seed(3))
    head = (rows, weight, bias)
    ranges = torch.arange(S + 1).expand(B, T, S + 1)
    loss = selected_pruned(*head, symbols, ranges, 0, boundary, reduction="none")
    logits = F.linear(*head).reshape(B, T, S + 1, C)
    truth = torchaudio.functional.rnnt_loss(
        logits, symbols.int(), lens[:, 1].contiguous(), lens[:, 0].contiguous(),
        blank=0, reduction="none",
    )  # fmt: skip
    assert_close(outcome(loss, head), outcome(truth, head), 1e-5)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_flat_and_peaked_logits_in_float32_err_at_most_twice_the_dense_error(scale):
    """The exactness policy for whole losses, where the lattice's own rounding is in both arms."""
    head, lattice = problem(torch.float32, scale=scale)
    wide = [t.detach().double().requires_grad_() for t in head]
    truth = on_logits(dense.rnnt_loss_pruned, wide, lattice, reduction="none")
    plain = on_logits(dense.rnnt_loss_pruned, head, lattice, reduction="none")
    for x, y, ref in zip(ours(head, lattice, reduction="none"), plain, truth):
        bound = max(2 * (y - ref).norm(), 4 * 2**-23 * ref.norm())
        assert (x - ref).norm() <= bound


def test_one_class_and_a_blank_that_is_the_last_class():
    head, lattice = problem(classes=1)
    lattice["symbols"].zero_()
    assert_close(ours(head, lattice), on_logits(dense.rnnt_loss_pruned, head, lattice), 1e-12)
    head, lattice = problem(blank=C - 1)
    assert_close(ours(head, lattice), on_logits(dense.rnnt_loss_pruned, head, lattice), 1e-12)


def test_a_batch_without_symbols_is_the_blank_path():
    head, lattice = problem(s_range=1)
    lattice.update(
        symbols=torch.zeros(B, 0, dtype=torch.int64),
        ranges=torch.zeros(B, T, 1, dtype=torch.int64),
        boundary=torch.tensor([[0, 0, 0, t] for t in (T, 9, 1, 7)]),
    )
    loss, *_ = ours(head, lattice, reduction="none")
    blank = F.linear(*head).log_softmax(-1)[:, 0].reshape(B, T)
    expected = torch.stack([-blank[b, :t].sum() for b, t in enumerate((T, 9, 1, 7))])
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_hat_loss", [False, True])
def test_padding_outside_the_boundary_changes_nothing(use_hat_loss):
    (rows, weight, bias), lattice = problem()
    lattice["use_hat_loss"] = use_hat_loss
    expected = ours((rows, weight, bias), lattice)
    t = torch.arange(T)[None, :, None]
    outside = (t >= lattice["boundary"][:, 3, None, None]) | (
        lattice["ranges"] > lattice["boundary"][:, 2, None, None]
    )
    with torch.no_grad():
        rows[outside.reshape(-1)] = float("nan")
    for x, y in zip(ours((rows, weight, bias), lattice), expected):
        assert torch.equal(x, y)


@pytest.mark.parametrize("use_hat_loss", [False, True])
def test_an_observer_sees_what_the_dense_twin_reads_of_its_logits(use_hat_loss):
    (rows, weight, bias), lattice = problem()
    seen = []
    selected_pruned(rows, weight, bias, **lattice, use_hat_loss=use_hat_loss, observer=seen.append)
    (found,) = seen
    targets = torch.cat([lattice["symbols"], torch.zeros(B, 1, dtype=torch.int64)], dim=1)
    targets = targets.gather(1, lattice["ranges"].reshape(B, -1)).reshape(B, T, S_RANGE)
    logits = F.linear(rows, weight, bias).reshape(B, T, S_RANGE, C)
    expected = dense.dense_log_probs(logits, targets, 0, use_hat_loss)
    t = torch.arange(T)[None, :, None]
    s_end, t_end = lattice["boundary"][:, 2:, None, None].unbind(1)
    assert torch.equal(found.live, (t < t_end) & (lattice["ranges"] <= s_end))
    for x, ref in zip((found.target, found.blank, found.log_z), expected):
        assert not x.requires_grad
        torch.testing.assert_close(x[found.live], ref[found.live], rtol=1e-12, atol=1e-12)


def test_rows_that_do_not_match_the_ranges_are_named():
    (rows, weight, bias), lattice = problem()
    with pytest.raises(
        ValueError, match=r"selected_ids: got shape \(260, 2\), expected \[259, K\]"
    ):
        selected_pruned(rows[1:], weight, bias, **lattice)
