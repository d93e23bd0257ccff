"""Every head from rows equals itself from logits, in one call of the op and one head gradient."""

import functools
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from dispatch import NewTensors
from gates import rms
from half_gemms import emulate

from panda_icefall.losses.heads import HatHead, MultiBlankHead, PlainHead, TdtHead
from panda_icefall.normalizer import RowLogits, RowProgram, TileCounters, TileOptions
from panda_icefall.normalizer.op import select

N, H, C = 31, 6, 29
# A head and its blank.
HEADS = {
    "plain": (PlainHead(), 3),
    "HAT": (HatHead(), 0),
    "multi-blank": (MultiBlankHead(2), C - 1),
    "TDT": (TdtHead(4), 5),
    "TDT without durations": (TdtHead(4, reads_durations=False), 5),
}
every_head = pytest.mark.parametrize("name", HEADS)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install triton"
)
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|overflow) encountered:RuntimeWarning"
)


def leaves_of(dtype=torch.float64, sites=N, classes=C, hidden=H):
    """Rows, weight and bias."""
    g = torch.Generator().manual_seed(3)
    shapes = (sites, hidden), (classes, hidden), (classes,)
    leaves = [torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes]
    return [t.to(dtype).requires_grad_() for t in leaves]


def targets_of(head, sites=N, classes=C):
    g = torch.Generator().manual_seed(4)
    return torch.randint(0, head.token_classes(classes), (sites,), generator=g)


def by_rows(name, leaves, live=None, counters=None, head_dtype=None, clamp=None, **options):
    """What the head finds; ``leaves`` of one tensor are logits."""
    head, blank = HEADS[name]
    log_probs = functools.partial(
        select, live=live, options=TileOptions(**options), counters=counters, clamp=clamp
    )
    rows, *linear = leaves
    logits = RowLogits(RowProgram.of(rows), *linear, head_dtype=head_dtype)
    return head.of_rows(logits, targets_of(head, len(rows), logits.classes), blank, log_probs)


def by_logits(name, logits):
    head, blank = HEADS[name]
    return head.of_logits(logits, targets_of(head, *logits.shape), blank)


def outcome(found, leaves, live=None, scale=1.0):
    """Values of the live sites, and gradients of a sum in which each has a weight of its own."""
    values = [found.target, found.blank, found.log_z]
    values += [] if found.others is None else [*found.others.unbind(1)]
    values = torch.stack(values, dim=1)
    live = torch.ones(len(values), dtype=torch.bool) if live is None else live
    values = values[live]
    weights = torch.linspace(-2, 3, values.numel(), dtype=values.dtype).view_as(values)
    grads = torch.autograd.grad((values * weights * scale).sum(), leaves)
    return [values.detach(), *grads]


@every_head
@pytest.mark.parametrize(
    ("engine", "workspace_bytes"),
    [
        ("torch", 2_000),
        ("torch", 6_000),
        ("torch", 2**20),
        pytest.param("triton", 4_000, marks=needs_triton),
    ],
)
def test_values_and_gradients_are_those_of_logits(name, engine, workspace_bytes):
    live = torch.arange(N) % 3 != 1
    leaves = leaves_of()
    expected = outcome(by_logits(name, F.linear(*leaves)), leaves, live)
    found = by_rows(
        name, leaves, live, engine=engine, workspace_bytes=workspace_bytes, adjoint_tolerance=0.0
    )
    for x, ref in zip(outcome(found, leaves, live), expected):
        assert (x - ref).norm() <= 1e-12 * ref.norm()


@every_head
@pytest.mark.parametrize("workspace_bytes", [3_000, 2**20])
def test_logits_themselves_can_be_the_rows(name, workspace_bytes):
    logits = F.linear(*leaves_of()).detach().requires_grad_()
    expected = outcome(by_logits(name, logits), [logits])
    found = by_rows(name, [logits], workspace_bytes=workspace_bytes, adjoint_tolerance=0.0)
    for x, ref in zip(outcome(found, [logits]), expected):
        assert (x - ref).norm() <= 1e-12 * ref.norm()


@every_head
@pytest.mark.parametrize("head_dtype", [None, torch.bfloat16])
def test_the_only_tensor_of_the_heads_size_is_its_gradient(name, head_dtype):
    classes = 1_013
    leaves = leaves_of(torch.float32, 200, classes, 24)
    with NewTensors(least=(classes - 10) * 24) as made:
        found = by_rows(name, leaves, workspace_bytes=32_000, head_dtype=head_dtype)
        outcome(found, leaves)
    assert made.shapes == [(classes, 24)]


@every_head
def test_every_site_is_counted_once(name):
    counters, leaves = TileCounters(), leaves_of()
    outcome(by_rows(name, leaves, torch.arange(N) < 20, counters), leaves)
    totals = counters.totals
    assert (totals.sites, totals.sites_evaluated) == (N, 20)
    assert totals.tiles_forward == totals.tiles_backward == 1


@pytest.mark.parametrize("name", ["HAT", "TDT"])
@pytest.mark.parametrize(
    ("dtype", "engine", "loss_scale"),
    [
        (torch.bfloat16, "torch", 1.0),
        (torch.float16, "torch", 2.0**16),
        (torch.float16, "torch", 2.0**-20),
        pytest.param(torch.float16, "triton", 1.0, marks=needs_triton),
    ],
)
def test_half_gemms_err_by_the_rounding_of_their_operands(
    monkeypatch, name, engine, loss_scale, dtype
):
    seen = emulate(monkeypatch)
    leaves = leaves_of(torch.float32)
    rounded = [t.detach().to(dtype).double().requires_grad_() for t in leaves[:2]]
    wide = [*rounded, leaves[2].detach().double().requires_grad_()]
    truth = outcome(by_logits(name, F.linear(*wide)), wide, scale=loss_scale)
    found = by_rows(name, leaves, head_dtype=dtype, engine=engine, workspace_bytes=4_000)
    values, *grads = outcome(found, leaves, scale=loss_scale)
    assert rms(values - truth[0]) <= 8 * 2**-23 * rms(truth[0])
    for x, ref in zip(grads, truth[1:]):
        assert rms(x - ref) <= torch.finfo(dtype).eps * rms(ref)
    assert {given for _, given, *_ in seen} == {dtype}


def test_a_clamp_leaves_the_durations_alone():
    leaves, bound = leaves_of(), 0.01
    logits = F.linear(*leaves).detach().requires_grad_()
    whole = by_logits("TDT", logits)
    # Each site costs what its log-probs do, so that its gradient by the cost is 1.
    cost = whole.target + 2 * whole.blank + (whole.others * torch.tensor([1.0, 2, 3, 4])).sum(1)
    (grad,) = torch.autograd.grad(cost.sum(), logits)
    tokens = C - 4
    grad[:, :tokens] = grad[:, :tokens].clamp(-bound, bound)
    expected = torch.autograd.grad(F.linear(*leaves), leaves, grad)
    found = by_rows("TDT", leaves, clamp=bound, adjoint_tolerance=0.0)
    cost = found.target + 2 * found.blank + (found.others * torch.tensor([1.0, 2, 3, 4])).sum(1)
    for x, ref in zip(torch.autograd.grad((cost + found.cost_share).sum(), leaves), expected):
        assert (x - ref).norm() <= 1e-12 * ref.norm()


@pytest.mark.parametrize("logit", [-torch.inf, -1e30, 1e30])
def test_hat_takes_any_logit_of_the_blank(logit):
    leaves = leaves_of()
    leaves[2].data[0] = logit
    expected = outcome(by_logits("HAT", F.linear(*leaves)), leaves)
    found = outcome(by_rows("HAT", leaves, adjoint_tolerance=0.0), leaves)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "at"), [("HAT", 0), ("TDT", C - 2)])
def test_what_is_no_number_beside_the_normalised_classes_shows(name, at):
    leaves = leaves_of()
    leaves[2].data[at] = torch.nan
    values, by_row, by_weight, _ = outcome(by_rows(name, leaves), leaves)
    assert values.isnan().any(dim=1).all()
    assert by_row.isnan().all()
    assert by_weight[at].isnan().all()


def test_an_id_outside_the_normalised_classes_is_refused():
    leaves = leaves_of()
    head, _ = HEADS["TDT"]
    tokens = head.token_classes(C)
    log_probs = functools.partial(select, live=None, options=TileOptions(), counters=None)
    targets = torch.full((N,), tokens)
    with pytest.raises(ValueError, match=f"got class {tokens}, expected 0 <= id < {tokens}"):
        head.of_rows(RowLogits(RowProgram.of(leaves[0]), *leaves[1:]), targets, 5, log_probs)
