"""torchaudio's and optimized_transducer's losses of logits that exist, and their own oracles."""

import importlib.util

import pytest
import torch
import transducer_cases as cases
from lattice_oracle import LossKind, transducer_costs
from published import VECTORS

from panda_icefall.losses.of_logits import rnnt_loss, transducer_loss

B, T, S, C = 3, 8, 4, 11
FRAMES, STATES = torch.tensor([8, 5, 6]), torch.tensor([4, 0, 2])


def problem(dtype=torch.float64, scale=3.0):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(B, T, S + 1, C, generator=g, dtype=torch.float64) * scale
    targets = torch.randint(1, C, (B, S), generator=g)
    return logits.to(dtype).requires_grad_(), targets


def packed(logits):
    """Rows of the utterances' own sites, as optimized_transducer has them."""
    parts = [x[:t, : s + 1].reshape(-1, C) for x, t, s in zip(logits, FRAMES, STATES)]
    return torch.cat(parts)


@pytest.mark.parametrize("clamp", [-1.0, 0.1])
@pytest.mark.parametrize("blank", [0, 5, -1])
def test_rnnt_loss_in_float64(clamp, blank):
    logits, targets = problem()
    kind = LossKind(blank=blank % C, clamp=clamp)
    targets[targets == kind.blank] = 3
    expected = transducer_costs(logits, targets, FRAMES, STATES, kind)
    costs = rnnt_loss(logits, targets, FRAMES, STATES, blank, clamp, "none")
    torch.testing.assert_close(costs, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((x * upstream).sum(), logits)[0] for x in (costs, expected))
    cases.assert_close([ours], [theirs], 1e-11)


@pytest.mark.parametrize("one_sym_per_frame", [False, True])
@pytest.mark.parametrize("from_log_softmax", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_transducer_loss_in_float64(one_sym_per_frame, from_log_softmax, reduction):
    logits, targets = problem()
    rows = logits.log_softmax(-1) if from_log_softmax else logits
    rnnt_type = "one_sym_per_frame" if one_sym_per_frame else "regular"
    costs = transducer_costs(logits, targets, FRAMES, STATES, LossKind(rnnt_type=rnnt_type))
    expected = costs if reduction == "none" else getattr(costs, reduction)()
    loss = transducer_loss(
        packed(rows), targets, FRAMES.int(), STATES.int(), 0, reduction, one_sym_per_frame,
        from_log_softmax,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (loss, expected)
    )
    cases.assert_close([ours], [theirs], 1e-11)


# Of the losses that torchaudio has; all of them: tests/routing/test_own_loop.py.
OF_TORCHAUDIO = [v for v in VECTORS if v.kind == LossKind(blank=v.kind.blank, clamp=v.kind.clamp)]


@pytest.mark.parametrize("vector", OF_TORCHAUDIO, ids=str)
def test_published_vectors(vector):
    kind = vector.kind
    logits = vector.logits.double().requires_grad_()
    lengths = vector.logit_lengths, vector.target_lengths
    costs = rnnt_loss(logits, vector.targets, *lengths, kind.blank, kind.clamp, "none")
    torch.testing.assert_close(costs, vector.costs.double(), rtol=0, atol=vector.cost_tolerance)
    if vector.grad is not None and not vector.is_by_log_probs:
        (grad,) = torch.autograd.grad(costs.sum(), logits)
        torch.testing.assert_close(grad, vector.grad.double(), rtol=0, atol=vector.grad_tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_have_the_dtype_of_the_logits(dtype):
    logits, targets = problem(dtype)
    loss = rnnt_loss(logits, targets, FRAMES, STATES, 0)
    loss.backward()
    assert (loss.dtype, logits.grad.dtype) == (torch.float32, dtype)
    wide = logits.detach().double().requires_grad_()
    truth = transducer_costs(wide, targets, FRAMES, STATES, LossKind()).mean()
    (grad,) = torch.autograd.grad(truth, wide)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    eps = torch.finfo(dtype).eps
    assert cases.rms(logits.grad.double() - grad) <= 2 * eps * cases.rms(grad)


def test_log_probs_are_given():
    logits, targets = problem()
    log_probs = logits.log_softmax(-1)
    loss = rnnt_loss(log_probs, targets, FRAMES, STATES, 0, fused_log_softmax=False)
    expected = rnnt_loss(logits, targets, FRAMES, STATES, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (of_given,) = torch.autograd.grad(loss, log_probs, retain_graph=True)
    assert (of_given.sum(dim=-1) < 0).any()  # occupations, not a gradient through a softmax
    with pytest.raises(ValueError, match=r"clamp: got 1\.0 for log-probs"):
        rnnt_loss(log_probs, targets, FRAMES, STATES, 0, clamp=1.0, fused_log_softmax=False)


def test_rows_that_are_no_lattice_are_refused():
    logits, targets = problem()
    with pytest.raises(ValueError, match=r"logits: got 57 rows, expected sum_all_TU = 63"):
        transducer_loss(packed(logits)[:-6], targets, FRAMES, STATES, 0)
    with pytest.raises(ValueError, match="as its arcs pass whole frames"):
        transducer_loss(packed(logits), targets, torch.tensor([4, 5, 6]), STATES, 0, "sum", True)
    with pytest.raises(ValueError, match=r"targets: got shape \(3, 3\)"):
        rnnt_loss(logits, targets[:, :3], FRAMES, STATES)


def test_logits_of_no_frames_or_no_classes_are_refused_in_words():
    logits, targets = problem()
    none = 0 * FRAMES
    with pytest.raises(ValueError, match=r"no frames at all \(T=0\)"):
        rnnt_loss(logits[:, :0], targets, none, STATES)
    with pytest.raises(ValueError, match=r"no frames at all \(T=0\)"):
        transducer_loss(packed(logits)[:0], targets, none, STATES, 0)
    with pytest.raises(ValueError, match=r"no classes \(C=0\)"):
        rnnt_loss(logits[..., :0], targets, FRAMES, STATES)
    with pytest.raises(ValueError, match=r"no classes \(C=0\)"):
        transducer_loss(packed(logits)[:, :0], targets, FRAMES, STATES, 0)


needs_torchaudio = pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is None, reason="torchaudio is in the k2 lane"
)


@needs_torchaudio
@pytest.mark.parametrize("clamp", [-1.0, 0.05])
@pytest.mark.parametrize("blank", [0, 5, -1])
@pytest.mark.parametrize("scale", [1.0, 12.0], ids=["flat", "peaked"])
def test_as_torchaudio(clamp, blank, scale):
    import torchaudio

    logits, targets = problem(torch.float32, scale)
    targets[targets == blank % C] = 3
    integers = [x.int() for x in (targets, FRAMES, STATES)]
    upstream = torch.tensor([1.0, -2.0, 0.5])

    def run(loss):
        costs = loss(logits, *integers, blank, clamp, "none")
        return costs, torch.autograd.grad((costs * upstream).sum(), logits)[0]

    wide = logits.detach().double().requires_grad_()
    kind = LossKind(blank=blank % C, clamp=clamp)
    truth = transducer_costs(wide, targets, FRAMES, STATES, kind)
    truths = truth, torch.autograd.grad((truth * upstream).sum(), wide)[0]
    for ours, theirs, ref in zip(run(rnnt_loss), run(torchaudio.functional.rnnt_loss), truths):
        error, their_error = (cases.rms(x.double() - ref) for x in (ours, theirs))
        assert error <= max(1.5 * their_error, 4 * 2**-23 * cases.rms(ref))
        assert their_error <= 1e-4 * cases.rms(ref)  # it is the same loss


@pytest.mark.k2
@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
def test_as_k2(rnnt_type):
    import k2

    from panda_icefall import transducer_loss as of_joiner

    torch.manual_seed(0)
    joiner, inputs = (
        cases.PlacingJoiner(),
        cases.batch(LossKind(rnnt_type=rnnt_type), dtype=torch.float32),
    )
    frames, states = inputs["logit_lengths"], inputs["target_lengths"]
    boundary = torch.stack((0 * frames, 0 * frames, states, frames), dim=1)
    targets = torch.where(torch.arange(cases.S) < states[:, None], inputs["targets"], 0)
    options = {"rnnt_type": rnnt_type, "delay_penalty": 0.1, "reduction": "none"}
    logits = joiner(inputs["am"], inputs["lm"])
    theirs = k2.rnnt_loss(logits, targets, 0, boundary, **options)
    ours = of_joiner(joiner, inputs["am"], inputs["lm"], targets, frames, states, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grads = [cases.gradients(costs, inputs, joiner) for costs in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
