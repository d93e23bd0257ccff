"""The oracles: recursion against the list of all paths, other projects' numbers, k2, torchaudio."""

import functools
from dataclasses import replace

import pytest
import torch
from lattice_oracle import LossKind, cost_by_recursion, log_probs_of_tokens, transducer_costs
from lattice_paths import cost_by_enumeration
from published import VECTORS, warp_transducer

B, T, U, V = 5, 4, 2, 7
# The last utterance has more labels than frames: some losses have no path for it.
LOGIT_LENGTHS = torch.tensor([4, 3, 2, 1, 1])
TARGET_LENGTHS = torch.tensor([2, 2, 0, 0, 2])

KINDS = {
    "regular": LossKind(),
    "blank last": LossKind(blank=V - 1),
    "modified": LossKind(rnnt_type="modified", blank=3),
    "constrained": LossKind(rnnt_type="constrained"),
    "one symbol per frame": LossKind(rnnt_type="one_sym_per_frame", blank=V - 1),
    "hat": LossKind(head="hat"),
    "hat, blank inside, modified": LossKind(head="hat", blank=3, rnnt_type="modified"),
    "multi-blank": LossKind(blank=V - 1, big_blank_durations=(2, 4), sigma=0.07),
    "multi-blank, long first": LossKind(blank=2, big_blank_durations=(3, 2), sigma=0.07),
    "tdt": LossKind(blank=V - 1, durations=(0, 1, 2), sigma=0.05),
    "tdt, no 0": LossKind(durations=(1, 2, 3), sigma=0.05),
    "tdt, gap": LossKind(blank=3, durations=(0, 1, 4), head="hat"),
    "tdt, no 1": LossKind(durations=(0, 2)),
}
REGULARISERS = {
    "plain": {},
    "fastemit": {"fastemit_lambda": 0.3},
    "clamp": {"clamp": 0.05},
    "delay penalty, fastemit, clamp": {
        "delay_penalty": 0.2,
        "fastemit_lambda": 0.3,
        "clamp": 0.05,
    },
}


def inputs(kind, scale=2.0, seed=0):
    """Logits and targets without any blank."""
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(
        B, T, U + 1, V + len(kind.durations), generator=g, dtype=torch.float64
    )
    blanks = {kind.blank - i for i in range(1 + len(kind.big_blank_durations))}
    labels = torch.tensor([k for k in range(V) if k not in blanks])
    return logits, labels[torch.randint(len(labels), (B, U), generator=g)]


def costs_and_grad(kind, logits, targets, ranges=None, cost_of=cost_by_recursion, upstream=None):
    logits = logits.clone().requires_grad_()
    costs = transducer_costs(logits, targets, LOGIT_LENGTHS, TARGET_LENGTHS, kind, ranges, cost_of)
    finite = costs[costs.isfinite()]
    (grad,) = torch.autograd.grad(
        (finite * (upstream if upstream is not None else 1)).sum(), logits
    )
    return costs.detach(), grad


def assert_same(ours, truth, tolerance=1e-12):
    torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("regulariser", REGULARISERS)
@pytest.mark.parametrize("name", KINDS)
def test_the_recursion_is_the_sum_over_all_paths(name, regulariser, scale):
    kind = replace(KINDS[name], **REGULARISERS[regulariser])
    logits, targets = inputs(kind, scale)
    ours = costs_and_grad(kind, logits, targets)
    truth = costs_and_grad(kind, logits, targets, cost_of=cost_by_enumeration)
    assert_same(ours, truth)
    assert ours[0].isfinite().any()


RANGES = torch.tensor(
    [
        [[0, 1], [0, 1], [0, 1], [1, 2]],
        [[0, 1], [1, 2], [1, 2], [1, 2]],
        [[0, 1]] * 4,
        [[0, 1]] * 4,
        [[1, 2]] * 4,
    ]
)


def retained(logits):
    """The logits of the sites in RANGES."""
    return logits.gather(2, RANGES.unsqueeze(3).expand(*RANGES.shape, logits.shape[3]))


@pytest.mark.parametrize("regulariser", REGULARISERS)
@pytest.mark.parametrize("name", KINDS)
def test_a_pruned_lattice_has_the_paths_through_its_sites(name, regulariser):
    kind = replace(KINDS[name], **REGULARISERS[regulariser])
    full, targets = inputs(kind)
    logits = retained(full)
    ours = costs_and_grad(kind, logits, targets, RANGES)
    assert_same(ours, costs_and_grad(kind, logits, targets, RANGES, cost_by_enumeration))
    whole, _ = costs_and_grad(kind, full, targets)
    assert (ours[0] >= whole - 1e-12).all()
    assert (ours[0] > whole + 1e-3).any()  # something was pruned


@pytest.mark.parametrize("name", KINDS)
def test_all_states_as_ranges_are_the_full_lattice(name):
    kind = KINDS[name]
    logits, targets = inputs(kind)
    ranges = torch.arange(U + 1).expand(B, T, U + 1)
    assert_same(
        costs_and_grad(kind, logits, targets, ranges), costs_and_grad(kind, logits, targets)
    )


@pytest.mark.parametrize(
    ("kind", "logit_length", "target_length", "is_possible"),
    [
        (LossKind(), 1, 2, True),
        (LossKind(rnnt_type="modified"), 2, 2, True),
        (LossKind(rnnt_type="modified"), 1, 2, False),
        (LossKind(rnnt_type="constrained"), 1, 2, False),
        (LossKind(rnnt_type="one_sym_per_frame"), 3, 2, True),
        (LossKind(rnnt_type="one_sym_per_frame"), 2, 2, False),
        (LossKind(blank=6, big_blank_durations=(2,)), 1, 2, True),
        (LossKind(durations=(0, 1)), 1, 2, True),
        (LossKind(durations=(1, 2)), 3, 2, True),
        (LossKind(durations=(1, 2)), 2, 2, False),
        (LossKind(durations=(0, 2)), 3, 1, False),
    ],
)
def test_an_utterance_without_a_path_costs_inf_and_has_no_gradient(
    kind, logit_length, target_length, is_possible
):
    logits, targets = inputs(kind)
    logits = logits[:1].requires_grad_()
    for cost_of in (cost_by_recursion, cost_by_enumeration):
        cost = transducer_costs(
            logits, targets[:1], torch.tensor([logit_length]), torch.tensor([target_length]), kind,
            cost_of=cost_of,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(cost.sum(), logits)
        assert cost.isfinite().all() == is_possible
        assert grad.any() == is_possible


def test_the_gradient_is_clipped_before_it_is_multiplied():
    kind = LossKind(clamp=0.05, durations=(0, 1, 2))
    logits, targets = inputs(kind)
    upstream = torch.tensor([3.0, -1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    _, plain = costs_and_grad(replace(kind, clamp=-1.0), logits, targets)
    _, clipped = costs_and_grad(kind, logits, targets, upstream=upstream)
    expected = plain.clone()
    expected[..., :V] = plain[..., :V].clamp(-0.05, 0.05)
    assert_same(clipped, expected * upstream.reshape(-1, 1, 1, 1))
    assert plain[..., V:].abs().max() > 0.05  # durations are not clipped


def test_fastemit_adds_the_gradient_of_the_labels_alone():
    kind = LossKind()
    logits, targets = inputs(kind)
    plain_costs, plain = costs_and_grad(kind, logits, targets)
    costs, grad = costs_and_grad(replace(kind, fastemit_lambda=0.3), logits, targets)
    assert_same(costs, 1.3 * plain_costs)
    added = (grad - plain) / 0.3
    for b in range(B):
        live = int(TARGET_LENGTHS[b])
        label = torch.nn.functional.one_hot(targets[b, :live], V)
        by_arc = logits[b, :, :live].softmax(-1) - label  # of each label's negated log-prob
        occupation = (added[b, :, :live] / by_arc)[..., :1]
        assert_same(added[b, :, :live], occupation * by_arc)
        # Each path emits each label once.
        assert_same(occupation.sum(0), torch.ones(live, 1, dtype=torch.float64))
        assert not added[b, :, live:].any()


@pytest.mark.parametrize("blank", [0, 3, V - 1])
@pytest.mark.parametrize("head", ["softmax", "hat"])
def test_heads_are_distributions_over_the_tokens(head, blank):
    row = inputs(LossKind())[0][0, 0, 0]
    weights = row.exp()
    expected = weights / weights.sum()
    if head == "hat":
        no_blank = 1 / (1 + weights[blank])
        labels = weights.clone()
        labels[blank] = 0
        expected = no_blank * labels / labels.sum()
        expected[blank] = 1 - no_blank
    ours = log_probs_of_tokens(row, LossKind(head=head, blank=blank, sigma=0.1))
    assert_same(ours.exp(), expected * torch.tensor(-0.1, dtype=torch.float64).exp())


@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_published_numbers_are_reproduced(vector):
    logits = vector.logits.clone()
    if vector.is_by_log_probs:
        logits = logits.log_softmax(-1)
    logits.requires_grad_()
    costs = transducer_costs(
        logits, vector.targets, vector.logit_lengths, vector.target_lengths, vector.kind
    )
    torch.testing.assert_close(costs.detach(), vector.costs, rtol=0, atol=vector.cost_tolerance)
    if vector.grad is None:
        return
    (grad,) = torch.autograd.grad(costs.sum(), logits)
    expected = vector.grad
    if vector.is_by_log_probs:  # carry the adjoints through the head
        expected = expected - logits.detach().exp() * expected.sum(-1, keepdim=True)
    torch.testing.assert_close(grad, expected, rtol=0, atol=vector.grad_tolerance)


def test_the_published_gradients_of_an_additive_joiner_are_reproduced():
    vector = warp_transducer.ADDITIVE
    trans, pred = (
        t.clone().requires_grad_() for t in (warp_transducer.TRANS, warp_transducer.PRED)
    )
    costs = transducer_costs(
        trans[:, :, None] + pred[:, None],
        vector.targets, vector.logit_lengths, vector.target_lengths, vector.kind,
    )  # fmt: skip
    grads = torch.autograd.grad(costs.sum(), (trans, pred))
    expected = warp_transducer.TRANS_GRAD, warp_transducer.PRED_GRAD
    torch.testing.assert_close(grads, expected, rtol=0, atol=1e-4)


@pytest.mark.k2
@pytest.mark.parametrize("delay_penalty", [0.0, 0.25])  # k2 rounds it to float32
@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_the_losses_of_k2(rnnt_type, delay_penalty):
    import k2

    kind = LossKind(rnnt_type=rnnt_type, delay_penalty=delay_penalty, blank=3)
    full, targets = inputs(kind)
    boundary = torch.zeros(B, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = TARGET_LENGTHS, LOGIT_LENGTHS
    for logits, ranges in ((full, None), (retained(full), RANGES)):
        theirs_in = logits.clone().requires_grad_()
        loss = (
            k2.rnnt_loss
            if ranges is None
            else functools.partial(k2.rnnt_loss_pruned, ranges=ranges)
        )
        theirs = loss(
            logits=theirs_in, symbols=targets, termination_symbol=3, boundary=boundary,
            rnnt_type=rnnt_type, delay_penalty=delay_penalty, reduction="none",
        )  # fmt: skip
        costs, grad = costs_and_grad(kind, logits, targets, ranges)
        assert_same(theirs.detach(), costs, 1e-10)
        (their_grad,) = torch.autograd.grad(theirs[costs.isfinite()].sum(), theirs_in)
        assert_same(their_grad, grad, 1e-10)


@pytest.mark.k2
@pytest.mark.parametrize("clamp", [-1.0, 0.05])
@pytest.mark.parametrize("blank", [0, V - 1])
def test_the_loss_of_torchaudio(blank, clamp):
    import torchaudio

    kind = LossKind(blank=blank, clamp=clamp)
    logits, targets = inputs(kind)
    upstream = torch.tensor([3.0, -1.0, 0.5, 2.0, 1.0])
    theirs_in = logits.float().requires_grad_()
    theirs = torchaudio.functional.rnnt_loss(
        theirs_in, targets.int(), LOGIT_LENGTHS.int(), TARGET_LENGTHS.int(), blank=blank,
        clamp=clamp, reduction="none",
    )  # fmt: skip
    (their_grad,) = torch.autograd.grad((theirs * upstream).sum(), theirs_in)
    costs, grad = costs_and_grad(kind, logits.float(), targets, upstream=upstream.double())
    assert_same(theirs.double(), costs, 1e-5)
    assert_same(their_grad, grad, 1e-5)
